"""Inside a model: which inputs it sees, its attention weights, and the contents of its states."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ..model.attention import Attention, CrossState
from ..model.families import eval_mode
from ..model.patching import PatchState


def state_numbers(state: object) -> int:
    """The number of numbers in a state, counted in the state itself.

    Raises   ValueError when the state contains something that cannot be measured
    """
    return sum(tensor.numel() for tensor in state_tensors(state))


def state_bytes(state: object) -> int:
    """The bytes of a state, in the dtypes of its tensors.

    Raises   ValueError when the state contains something that cannot be measured
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(state))


def state_tensors(state) -> list[Tensor]:
    """Every tensor in a state of nested tuples; counters and None contain none."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, tuple | list):
        return [tensor for part in state for tensor in state_tensors(part)]
    if state is None or isinstance(state, int):
        return []
    raise ValueError(f"a state consists of tuples, tensors, counts and None; got {state!r}")


def positions_seen(model: nn.Module, t: int, T: int, ids: Tensor | None = None) -> Tensor:
    """Which of T input positions influence the logits at t.

        seen_i = any( d (sum of logits_t) / d embedding_i != 0 )  or  another id_i changes logits_t

    The first finds any influence through vectors, however small; the second also what a model
    finds by the ids themselves, such as hashed contexts. Dropout is off. For an encoder-decoder,
    the positions are those of the decoder's input.

    Shapes   ids (1,T), default: random ones  ->  (T,) bool
    Cost     a forward and a backward pass, and a forward pass of T + 1 rows
    Raises   ValueError when t lies outside 0 … T-1, or the model has no embedding
    """
    if not 0 <= t < T:
        raise ValueError(f"position t={t} must lie in 0 … {T - 1}, for an input of {T}")
    return _seen(model, T, range(t, t + 1), ids)[0]


def visibility(model: nn.Module, T: int, ids: Tensor | None = None) -> Tensor:
    """Row t is `positions_seen(model, t, T)`: lower triangular for a model that does not leak.

    Shapes   ids (1,T), default: random ones
             ->  (T,T) bool, a row for each output and a column for each input
    Cost     one forward and T backward passes, and a forward pass of T + 1 rows
    """
    return _seen(model, T, range(T), ids)


def _seen(model, T, rows, ids):
    embedding = _embedding(model)
    if ids is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(embedding.num_embeddings, (1, T), generator=generator)
    ids = ids.to(embedding.weight.device)
    through_vectors = torch.stack([row.cpu() for row in _gradients(model, embedding, ids, rows)])
    return through_vectors | _changes(model, embedding, ids)[list(rows)]


def _gradients(model, embedding, ids, rows):
    """For each output position, which embeddings have a gradient."""
    leaves = []

    def cut(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]  # an encoder-decoder embeds its source first, the decoder's input last

    with embedding.register_forward_hook(cut), eval_mode(model), torch.enable_grad():
        logits = model(*_inputs(model, ids))
        totals = logits[0].sum(dim=-1).unbind()  # T numbers
    for t in rows:
        (gradient,) = torch.autograd.grad(totals[t], leaves[-1], retain_graph=True)
        yield (gradient[0] != 0).any(dim=-1)


def _changes(model, embedding, ids):
    """Which logits change, by more than rounding, with another id in one place.

    Shapes   ids (1,T)  ->  (T,T) bool, a row for each output and a column for each input
    """
    *sources, ids = _inputs(model, ids)
    T = ids.shape[1]
    changed = ids.repeat(T + 1, 1)  # one place in each row, and none in the last
    changed[range(T), range(T)] = (ids[0] + 1) % embedding.num_embeddings
    with eval_mode(model):
        logits = model(*(source.expand(T + 1, -1) for source in sources), changed)
    gaps = (logits[:-1] - logits[-1:]).abs().amax(dim=-1)
    return (gaps > 1e-5 * logits.abs().max()).T.cpu()


def _embedding(model):
    """The embedding of the ids: every model that is probed has it as `embed`."""
    if isinstance(module := getattr(model, "embed", None), torch.nn.Embedding):
        return module
    raise ValueError(
        f"{type(model).__name__} has no embedding `embed` to measure from; give the model one"
    )


def attention_weights(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """The weight of each key for each query, in every layer of softmax attention.

    Layers are named as in `model.named_modules()`. An encoder-decoder gets `ids` as its source and
    as its decoder's input.

    Shapes   ids (B,T)  ->  (B,H,T,N) for each layer, whose rows sum to 1; in a layer on patches, T
             and N count complete patches, and a text without one has no weights there
    Cost     a forward pass that computes attention twice; memory O(H T N) for each layer
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


def state_rms(state: object) -> dict[str, float]:
    """The root mean square of each layer's state, by layer, from the input upwards.

    Byte layers are named "byte 1 conv", layers on patches "patch 1 cumsum". The state of a mixer of
    your own is a tensor, or a tuple with a field or attribute `kind` that names it.

    Raises   ValueError when the state of a layer is something else
    """
    counts, found = Counter(), {}
    for clock, layer in _memories(state and state.parts, "byte"):
        counts[clock] += 1
        kind = getattr(layer, "kind", "state")
        found[f"{clock} {counts[clock]} {kind}"] = _rms(layer)
    return found


def rows_in_use(model: nn.Module, state: object) -> dict[str, float]:
    """The share of a recall's rows that something was written to, by context: "recall 4".

    A context that comes back again and again needs few rows, and finds much. Without a recall there
    is no share.
    """
    recall = getattr(state, "recall", None)
    if recall is None:
        return {}
    shares = (recall.rows[..., -1] > 0).float().mean(dim=(0, 2))  # the last number is the count
    names = [f"recall {context}" for context in model.recall.contexts]
    return dict(zip(names, shares.tolist(), strict=True))


def _memories(state, clock):
    """(clock, state) of every mixer inside, in order, without the states of a source."""
    if isinstance(state, PatchState):
        yield from _memories(state.trunk, "patch")
    elif hasattr(state, "kind") or isinstance(state, Tensor):
        yield clock, state
    elif type(state) is tuple:
        for part in state:
            yield from _memories(part, clock)
    elif not isinstance(state, CrossState | None):
        raise ValueError(f"the state of a layer must have a kind; got {type(state).__name__}")


def _rms(state) -> float:
    flat = torch.cat([tensor.detach().float().reshape(-1) for tensor in state_tensors(state)])
    return flat.square().mean().sqrt().item()


def _inputs(model, ids) -> tuple[Tensor, ...]:
    """Arguments of `model.forward`: the ids, unless the model has `example_inputs` of its own."""
    return model.example_inputs(ids) if hasattr(model, "example_inputs") else (ids,)
