"""Looking into models: what a position can see, and what a state holds."""

from __future__ import annotations

import torch
from torch import Tensor

from .mixers import KV, Corrected, Latent, Memory, Past, Sum
from .patching import PatchState

# A layer's memory of the text so far; what an encoder-decoder knows of its source is not.
KINDS = {
    Sum: "cumsum",
    Memory: "linear",
    Corrected: "delta",
    KV: "softmax",
    Latent: "latent",
    Past: "conv",
}


def tensors(state) -> list[Tensor]:
    """Every tensor in a state, however its tuples are nested; counters and None hold none.

    Raises   ValueError when the state holds something that cannot be measured
    """
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, tuple | list):
        return [tensor for part in state for tensor in tensors(part)]
    if state is None or isinstance(state, int):
        return []
    raise ValueError(f"a state is made of tuples, tensors, counts and None; got {state!r}")


def state_numbers(state) -> int:
    """How many numbers a state holds, measured from the state itself."""
    return sum(tensor.numel() for tensor in tensors(state))


def state_bytes(state) -> int:
    """The same in bytes, at the precision in which the state is held."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(state))


def positions_seen(model, t: int, T: int) -> Tensor:
    """Which of T input positions have any influence on the logits at t, by the gradient.

        seen_i = any( d (sum of logits_t) / d embedding_i != 0 )

    One random sequence stands for all, and dropout is off while it is measured.

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
    leaves, training = [], model.training

    def cut(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]  # the last text: an encoder-decoder embeds its source before

    hook = embedding.register_forward_hook(cut)
    model.eval()
    try:
        with torch.enable_grad():
            logits = model(ids.to(embedding.weight.device))
            totals = logits[0].sum(dim=-1).unbind()  # T numbers
    finally:
        hook.remove()
        model.train(training)
    gradients = (torch.autograd.grad(totals[t], leaves[-1], retain_graph=True)[0] for t in rows)
    return torch.stack([(gradient[0] != 0).any(dim=-1).cpu() for gradient in gradients])


def _embedding(model):
    """Where ids become vectors: `embed`, or `byte_embedding` in the published models."""
    for name in ("embed", "byte_embedding"):
        if isinstance(module := getattr(model, name, None), torch.nn.Embedding):
            return module
    raise ValueError(
        f"{type(model).__name__} has neither `embed` nor `byte_embedding`, so there is no place "
        "to measure from"
    )


def state_rms(state) -> dict[str, float]:
    """Root mean square of what each layer remembers, by layer, from the input upwards.

    Byte layers are named "byte 1 conv", layers on patches "patch 1 cumsum".
    """
    return {
        f"{clock} {number} {kind}": _rms(layer)
        for number, (clock, kind, layer) in _numbered(_layers(state.parts, "byte"))
    }


def _layers(state, clock):
    """(clock, kind, layer state) of every mixer's state inside, in order."""
    if isinstance(state, PatchState):
        yield from _layers(state.trunk, "patch")
    elif kind := KINDS.get(type(state)):
        yield clock, kind, state
    elif isinstance(state, tuple):
        for part in state:
            yield from _layers(part, clock)


def _numbered(layers):
    """Each clock counts its own layers."""
    counts: dict[str, int] = {}
    for clock, kind, layer in layers:
        counts[clock] = counts.get(clock, 0) + 1
        yield counts[clock], (clock, kind, layer)


def _rms(state) -> float:
    flat = torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors(state)])
    return flat.square().mean().sqrt().item()
