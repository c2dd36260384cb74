"""Looking into models: what is seen, what attention takes, what states hold, what it all costs."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from ..model.attention import Attention, CrossState
from ..model.families import eval_mode
from ..model.patching import PatchState


def state_tensors(state) -> list[Tensor]:
    """Every tensor in a state, however its tuples are nested; counters and None hold none.

    Raises   ValueError when the state holds something that cannot be measured
    """
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, tuple | list):
        return [tensor for part in state for tensor in state_tensors(part)]
    if state is None or isinstance(state, int):
        return []
    raise ValueError(f"a state is made of tuples, tensors, counts and None; got {state!r}")


def state_numbers(state) -> int:
    """How many numbers a state holds, measured from the state itself."""
    return sum(tensor.numel() for tensor in state_tensors(state))


def state_bytes(state) -> int:
    """The same in bytes, at the precision in which the state is held."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(state))


def positions_seen(model, t: int, T: int) -> Tensor:
    """Which of T input positions have any influence on the logits at t, by the gradient.

        seen_i = any( d (sum of logits_t) / d embedding_i != 0 )

    One random sequence stands for all, and dropout is off while it is measured. An encoder-decoder
    has it for its source too; measured is what is seen of the text that it writes.

    Shapes   -> (T,) bool
    Cost     one forward and one backward pass
    Raises   ValueError when t lies outside 0 … T-1, or the model embeds no ids
    """
    if not 0 <= t < T:
        raise ValueError(f"position t={t} must lie in 0 … {T - 1}, for an input of {T}")
    return _seen(model, T, range(t, t + 1))[0]


def visibility(model, T: int) -> Tensor:
    """Row t is `positions_seen(model, t, T)`: lower triangular for a model that does not leak.

    Shapes   -> (T,T) bool, a row for each output and a column for each input
    Cost     one forward and T backward passes
    """
    return _seen(model, T, range(T))


def _seen(model, T, rows):
    embedding = _embedding(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(embedding.num_embeddings, (1, T), generator=generator)
    leaves = []

    def cut(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]  # the last text: an encoder-decoder embeds its source before

    with embedding.register_forward_hook(cut), eval_mode(model), torch.enable_grad():
        logits = model(*_inputs(model, ids.to(embedding.weight.device)))
        totals = logits[0].sum(dim=-1).unbind()  # T numbers
    gradients = (torch.autograd.grad(totals[t], leaves[-1], retain_graph=True)[0] for t in rows)
    return torch.stack([(gradient[0] != 0).any(dim=-1).cpu() for gradient in gradients])


def _embedding(model):
    """The embedding of the ids: every model that is probed has it as `embed`."""
    if isinstance(module := getattr(model, "embed", None), torch.nn.Embedding):
        return module
    raise ValueError(
        f"{type(model).__name__} has no embedding `embed` to measure from; give the model one"
    )


def attention_weights(model, ids) -> dict[str, Tensor]:
    """How much each query takes of each key, in every layer of softmax attention.

    Layers are named as in `model.named_modules()`. An encoder-decoder reads the ids that it writes.

    Shapes   ids (B,T)  ->  (B,H,T,N) for each layer, rows of shares of 1; on patches both T and N
             count patches, and before the first there is nothing
    Cost     a forward pass, all attention in it twice; memory O(H T N) for each layer
    """
    found = {}

    def note(name, layer, inputs, output):
        found[name] = layer.weights(*inputs)

    with eval_mode(model), ExitStack() as hooks:
        for name, layer in model.named_modules():
            if isinstance(layer, Attention):
                hooks.enter_context(layer.register_forward_hook(partial(note, name)))
        model(*_inputs(model, ids))
    return found


def state_rms(state) -> dict[str, float]:
    """Root mean square of what each layer remembers, by layer, from the input upwards.

    Byte layers are named "byte 1 conv", layers on patches "patch 1 cumsum".

    Raises   ValueError when a layer's state does not say its kind
    """
    counts, found = Counter(), {}
    for clock, layer in _memories(state and state.parts, "byte"):
        counts[clock] += 1
        found[f"{clock} {counts[clock]} {layer.kind}"] = _rms(layer)
    return found


def _memories(state, clock):
    """(clock, state) of every mixer inside, in order; what is known of a source is none's."""
    if isinstance(state, PatchState):
        yield from _memories(state.trunk, "patch")
    elif hasattr(state, "kind"):
        yield clock, state
    elif type(state) is tuple:
        for part in state:
            yield from _memories(part, clock)
    elif not isinstance(state, CrossState | None):
        raise ValueError(f"a layer's state must say its kind; got {type(state).__name__}")


def _rms(state) -> float:
    flat = torch.cat([tensor.detach().float().reshape(-1) for tensor in state_tensors(state)])
    return flat.square().mean().sqrt().item()


def _inputs(model, ids) -> tuple[Tensor, ...]:
    """Arguments of `model.forward`: the ids, unless the model has `example_inputs` of its own."""
    return model.example_inputs(ids) if hasattr(model, "example_inputs") else (ids,)
