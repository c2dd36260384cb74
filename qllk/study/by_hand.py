"""randyGPT by hand: a character GPT in NumPy, with every gradient written out.

Read it from top to bottom: the parts, each followed by its backward pass; the model; data
parallelism; Adam; training; and what the original left out. Its one idea is the chain rule. `dy` is
the gradient of the loss with respect to `y` and always has the shape of `y`. The backward pass of a
part computes `dx` from `dy` and from what the forward pass saved.

    losses = train(shape, weights, characters, steps=300)        python -m qllk.study.by_hand

Twin     the same model in torch, in tests/test_by_hand.py: gradients equal to 1e-10 in float64
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..checks import check_positive
from ..probes.baselines import table_losses
from ..text.corpora import corpus, corpus_names
from .pool import start_processes

IGNORED = -1  # a target that does not count
_EPSILON = 1e-5  # keeps the norm of a zero vector finite

_Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """The sizes of one model.

    Raises   ValueError when a size is below one, or heads does not divide d_model
    """

    vocab_size: int
    context: int  # the longest T
    d_model: int  # D
    layers: int
    heads: int  # H, each D / H wide

    def __post_init__(self):
        check_positive("Shape", **vars(self))
        if self.d_model % self.heads:
            raise ValueError(f"heads={self.heads} must divide d_model={self.d_model}")


# By version: 13,184 and 811,776 parameters. The vocabularies are the letters of "hello world" and
# the characters of tiny Shakespeare, each with 2 specials.
RANDYGPT = {
    "0.1": Shape(vocab_size=10, context=8, d_model=32, layers=1, heads=4),
    "0.3": Shape(vocab_size=67, context=64, d_model=128, layers=4, heads=8),
}


def init_weights(shape: Shape, seed: int = 0, dtype: type = np.float32) -> _Weights:
    """Random weights by name, scaled to keep activations steady and the first loss near ln V.

    Shapes   embed (V,D), positions (T,D), head (D,V); in layer i: i.qkv (D,3D), i.out (D,D),
             i.up (D,4D), i.down (4D,D)
    """
    D, skip = (
        shape.d_model,
        (2 * shape.layers) ** -0.5,
    )  # every layer adds two parts to the residual
    sizes = {"embed": (shape.vocab_size, D, D**-0.5), "positions": (shape.context, D, D**-0.5)}
    for i in range(shape.layers):
        sizes[f"{i}.qkv"] = (D, 3 * D, D**-0.5)
        sizes[f"{i}.out"] = (D, D, skip * D**-0.5)
        sizes[f"{i}.up"] = (D, 4 * D, D**-0.5)
        sizes[f"{i}.down"] = (4 * D, D, skip * (4 * D) ** -0.5)
    sizes["head"] = (D, shape.vocab_size, 0.2 * D**-0.5)
    draw = np.random.default_rng(seed).normal
    return {name: draw(0, std, (n, m)).astype(dtype) for name, (n, m, std) in sizes.items()}


# ---------------------------------------------------------------- parts and their gradients


def _linear_back(dy, x, W):
    """The backward pass of y = x W: x and W collect the gradients of everything they contribute to.

        dx = dy W^T        dW = x^T dy, summed over all positions

    Shapes   dy (B,T,M), x (B,T,N), W (N,M) -> dx (B,T,N), dW (N,M)
    """
    return dy @ W.T, x.reshape(-1, W.shape[0]).T @ dy.reshape(-1, W.shape[1])


def _norm(x):
    """y = x r with r = 1 / rms(x): every vector gets the same length. There are no weights.

    Shapes   (B,T,D) -> y (B,T,D), r (B,T,1)
    Paper    RMSNorm, Zhang and Sennrich 2019, 1910.07467
    """
    r = ((x * x).mean(-1, keepdims=True) + _EPSILON) ** -0.5
    return x * r, r


def _norm_back(dy, y, r):
    """dx = r (dy - y mean(y dy)): without the part along y, because y has a fixed length."""
    return r * (dy - y * (y * dy).mean(-1, keepdims=True))


def _softmax(x):
    """p = exp(x) / sum(exp(x)); subtracting the maximum first only prevents overflow."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _softmax_back(dp, p):
    """dx = p (dp - sum(p dp)): raising one probability lowers all others."""
    return p * (dp - (p * dp).sum(-1, keepdims=True))


def _attention(qkv, heads):
    """Causal attention: every query attends to every key up to its own position.

        p = softmax(q k^T / sqrt(K))        o = p v

    Shapes   qkv (B,T,3D) -> o (B,T,D), and saved: q, k, v (B,H,T,K), p (B,H,T,T)
    Cost     time and memory O(T^2), since p is saved
    """
    B, T, _ = qkv.shape
    q, k, v = qkv.reshape(B, T, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    future = np.triu(np.ones((T, T), bool), 1)
    p = _softmax(np.where(future, -np.inf, scores))
    return (p @ v).swapaxes(1, 2).reshape(B, T, -1), (q, k, v, p)


def _attention_back(do, saved):
    """Back through the values, the softmax and the scores.  Shapes  do (B,T,D) -> dqkv (B,T,3D)"""
    q, k, v, p = saved
    B, H, T, K = q.shape
    do = do.reshape(B, T, H, K).swapaxes(1, 2)  # (B,H,T,K)
    dv = p.swapaxes(-1, -2) @ do
    dscores = _softmax_back(do @ v.swapaxes(-1, -2), p) * K**-0.5  # zero in the future, like p
    dq, dk = dscores @ k, dscores.swapaxes(-1, -2) @ q
    return np.stack((dq, dk, dv)).transpose(1, 3, 0, 2, 4).reshape(B, T, -1)


def _attend(x, W_qkv, W_out, heads):
    """The first half of a layer: x + attention(norm(x) W_qkv) W_out."""
    y, r = _norm(x)
    o, saved = _attention(y @ W_qkv, heads)
    return x + o @ W_out, (W_qkv, W_out, y, r, o, saved)


def _attend_back(dz, saved):
    """The residual passes dz on unchanged; the other branch adds its own gradient."""
    W_qkv, W_out, y, r, o, attention_saved = saved
    do, dW_out = _linear_back(dz, o, W_out)
    dy, dW_qkv = _linear_back(_attention_back(do, attention_saved), y, W_qkv)
    return dz + _norm_back(dy, y, r), dW_qkv, dW_out


def _feed_forward(x, W_up, W_down):
    """The second half: x + relu(norm(x) W_up)^2 W_down.  Paper  Primer, So 2021, 2109.08668, 3"""
    y, r = _norm(x)
    h = np.maximum(y @ W_up, 0)
    return x + (h * h) @ W_down, (W_up, W_down, y, r, h)


def _feed_forward_back(dz, saved):
    """d(h^2) = 2 h dh, which is also zero where relu was."""
    W_up, W_down, y, r, h = saved
    dh2, dW_down = _linear_back(dz, h * h, W_down)
    dy, dW_up = _linear_back(2 * h * dh2, y, W_up)
    return dz + _norm_back(dy, y, r), dW_up, dW_down


def _cross_entropy(logits, targets):
    """The cross-entropy of each target in nats, and the gradient of their sum.

        loss = -log p[target]        dlogits = p - onehot(target)        p = softmax(logits)

    Shapes   logits (B,T,V), targets (B,T), some IGNORED -> (B,T), (B,T,V), zero where ignored
    """
    counted = (targets != IGNORED)[..., None]
    index = np.where(counted, targets[..., None], 0)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    dlogits = np.exp(log_p)
    chosen = np.take_along_axis(log_p, index, -1)
    np.put_along_axis(dlogits, index, np.exp(chosen) - 1, -1)
    return (-chosen * counted)[..., 0], dlogits * counted


# ---------------------------------------------------------------- the model


def forward(shape: Shape, weights: _Weights, ids: np.ndarray) -> tuple[np.ndarray, tuple]:
    """The logits of the character after each, and what `_backward` needs.

    Shapes   ids (B,T) -> logits (B,T,V)
    Raises   ValueError when ids are longer than the context or outside the vocabulary
    """
    _check_ids(shape, "ids", ids)
    x, saved = weights["embed"][ids] + weights["positions"][: ids.shape[1]], []
    for i in range(shape.layers):
        x, attend_saved = _attend(x, weights[f"{i}.qkv"], weights[f"{i}.out"], shape.heads)
        x, feed_forward_saved = _feed_forward(x, weights[f"{i}.up"], weights[f"{i}.down"])
        saved.append((attend_saved, feed_forward_saved))
    return x @ weights["head"], (x, saved)


def _backward(weights, ids, dlogits, saved) -> _Weights:
    """The gradient of every weight: `forward`, from its last line to its first."""
    grads, (x, layers) = {}, saved
    dx, grads["head"] = _linear_back(dlogits, x, weights["head"])
    for i, (attend_saved, feed_forward_saved) in reversed(list(enumerate(layers))):
        dx, grads[f"{i}.up"], grads[f"{i}.down"] = _feed_forward_back(dx, feed_forward_saved)
        dx, grads[f"{i}.qkv"], grads[f"{i}.out"] = _attend_back(dx, attend_saved)
    for table in ("embed", "positions"):
        grads[table] = np.zeros_like(weights[table])
    np.add.at(grads["embed"], ids, dx)  # a character gets the sum over all its positions
    grads["positions"][: ids.shape[1]] = dx.sum(0)
    return grads


def _check_ids(shape, what, ids):
    """Refuse ids that NumPy would accept: an index of -1 would silently mean the last character."""
    if ids.ndim != 2 or 0 in ids.shape or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{what} must be whole numbers of shape (batch, time), neither empty; got {ids.shape} "
            f"of {ids.dtype}. For one sequence use {what}[None]"
        )
    if ids.shape[1] > shape.context:
        raise ValueError(
            f"{what} are {ids.shape[1]} long, but the context is {shape.context}; "
            "shorten them or raise Shape.context"
        )
    if ids.min() < 0 or ids.max() >= shape.vocab_size:
        raise ValueError(
            f"{what} must lie in 0 … {shape.vocab_size - 1}, got {ids.min()} … {ids.max()}"
        )


# ---------------------------------------------------------------- learning


def _sums(shape, weights, ids, targets):
    """Loss and gradients summed over the targets: the sums of shares add up to the whole."""
    logits, saved = forward(shape, weights, ids)
    losses, dlogits = _cross_entropy(logits, targets)
    return losses.sum(), _backward(weights, ids, dlogits, saved)


def gradients(
    shape: Shape,
    weights: _Weights,
    ids: np.ndarray,
    targets: np.ndarray,
    shares: int = 1,
    run: Callable = map,
) -> tuple[np.floating, _Weights]:
    """The mean loss over the targets that count, and its gradients.

    With more than one share, the rows are split and `run` maps over the shares. Pass the `map` of
    a process pool: each process receives the weights and its rows, and returns its sums.

    Shapes   ids, targets (B,T), some IGNORED -> loss, gradients of the shapes of the weights
    Raises   ValueError when no target counts, targets do not fit the ids or the vocabulary, or a
             share would be empty
    """
    counted = targets != IGNORED
    if targets.shape != ids.shape or not counted.any():
        raise ValueError(
            f"targets must have the shape of ids, {ids.shape}, and not all be IGNORED; got "
            f"{targets.shape} with {counted.sum()} targets that count"
        )
    _check_ids(shape, "targets", np.where(counted, targets, 0))
    if not 1 <= shares <= len(ids):
        raise ValueError(f"shares={shares} must lie in 1 … {len(ids)}, the number of rows")
    rows = np.array_split(ids, shares), np.array_split(targets, shares)
    losses, parts = zip(*run(partial(_sums, shape, weights), *rows), strict=True)
    count = int(counted.sum())  # a Python int; NumPy's would turn float32 into float64
    return sum(losses) / count, {name: sum(p[name] for p in parts) / count for name in weights}


@contextmanager
def workers(processes: int) -> Iterator[Callable]:
    """A `map` over processes that live as long as the `with`; for one process, Python's `map`.

    Each process uses every core unless OMP_NUM_THREADS=1 is set before Python starts.

    Raises   ChildProcessError as `start_processes`, such as from a script without a main guard
    """
    if processes == 1:
        yield map
    else:
        with start_processes(processes) as pool:
            yield pool.map


class Adam:
    """Steps are long where the gradient is steady: its running mean over its running RMS.

        m += (1 - b1) (g - m)        v += (1 - b2) (g^2 - v)
        w -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    m and v start at zero, which the divisions by 1 - b^t correct. The weights are updated in place.

    State    m and v, two numbers per weight
    Paper    Kingma and Ba 2014, 1412.6980, algorithm 1
    """

    def __init__(
        self,
        weights: _Weights,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.weights, self.lr, self.betas, self.eps, self.t = weights, lr, betas, eps, 0
        self.m = {name: np.zeros_like(w) for name, w in weights.items()}
        self.v = {name: np.zeros_like(w) for name, w in weights.items()}

    def step(self, grads: _Weights) -> None:
        """Update every weight by its gradient."""
        self.t += 1
        b1, b2 = self.betas
        for name, w in self.weights.items():
            m, v, g = self.m[name], self.v[name], grads[name]
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            w -= self.lr * (m / (1 - b1**self.t)) / (np.sqrt(v / (1 - b2**self.t)) + self.eps)


def _last_start(characters, T) -> int:
    """The start of the last window with a target for each of its T characters."""
    if len(characters) <= T:
        raise ValueError(f"the text has {len(characters)} characters, a window needs {T + 1}")
    return len(characters) - T - 1


def _windows(characters, starts, T):
    """T characters from each start, and the character after each: (B,T), (B,T)."""
    rows = characters[starts[:, None] + np.arange(T + 1)].astype(np.int64)  # (B,T+1)
    return rows[:, :-1], rows[:, 1:].copy()


ATTENTION = ("qkv", "out")  # never updated by the original: a third of its parameters


def train(
    shape: Shape,
    weights: _Weights,
    characters: np.ndarray,
    *,
    steps: int,
    batch: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
    frozen: Collection[str] = (),
    last: int | None = None,
    processes: int = 1,
) -> list[float]:
    """Update the weights in place on random windows of a text. Returns the mean loss of each step.

    Shapes   characters (n,) ids
    Options  frozen   parts of all layers that are not updated, such as ATTENTION; gradients still
                      pass through them
             last     train only the last positions of each window; default: all
    Raises   ValueError when the text is shorter than a window, or a part or position does not exist
             ChildProcessError as `workers`
    """
    check_positive("train", steps=steps, batch=batch, processes=processes)
    T, parts = shape.context, {name.split(".")[-1] for name in weights}
    if unknown := sorted(set(frozen) - parts):
        raise ValueError(
            f"no part {unknown[0]!r} to freeze; choose from {', '.join(sorted(parts))}"
        )
    if last is not None and not 1 <= last <= T:
        raise ValueError(f"last={last} must lie in 1 … {T}, the context, or be None for all")
    adam = Adam({n: w for n, w in weights.items() if n.split(".")[-1] not in frozen}, lr)
    generator, losses = np.random.default_rng(seed), []
    with workers(processes) as run:
        for _ in range(steps):
            starts = generator.integers(_last_start(characters, T) + 1, size=batch)
            ids, targets = _windows(characters, starts, T)
            targets[:, : T - (last or T)] = IGNORED
            loss, grads = gradients(shape, weights, ids, targets, processes, run)
            adam.step(grads)
            losses.append(float(loss))
    return losses


def loss_by_position(shape: Shape, weights: _Weights, characters: np.ndarray) -> np.ndarray:
    """The mean loss at each position of the window, over neighbouring windows of a text.

    Shapes   characters (n,) ids -> nats (T,)
    """
    T, losses = shape.context, []
    starts = np.arange(0, _last_start(characters, T) + 1, T)
    for group in np.array_split(starts, len(starts) // 32 + 1):
        ids, targets = _windows(characters, group, T)
        losses.append(_cross_entropy(forward(shape, weights, ids)[0], targets)[0])
    return np.concatenate(losses).mean(0)


# ---------------------------------------------------------------- what the original left out

_VARIANTS = {
    "everything learns": {},
    "attention frozen": {"frozen": ATTENTION},
    "one position per window": {"last": 1},
    "both, as the original": {"frozen": ATTENTION, "last": 1},
}
_SMALL = replace(RANDYGPT["0.3"], d_model=64, layers=2)  # a fifteenth of the operations


def compare(
    shape: Shape,
    train_ids: np.ndarray,
    valid_ids: np.ndarray,
    *,
    steps: int,
    batch: int = 32,
    lr: float = 3e-3,
    processes: int = 1,
) -> Iterator[dict]:
    """Train every variant from the same weights on the same windows, and yield a row for each.

    The losses are held-out nats per character, over all positions and at the last position of a
    window, the only one that the original trained.
    """
    recipe = {"steps": steps, "batch": batch, "lr": lr, "processes": processes}
    for name, options in _VARIANTS.items():
        weights, start = init_weights(shape), time.perf_counter()
        train(shape, weights, train_ids, **recipe, **options)
        seconds = time.perf_counter() - start
        nats = loss_by_position(shape, weights, valid_ids)
        yield {"variant": name, "all": nats.mean(), "last": nats[-1], "seconds": seconds}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that `what` describes. Returns 0, or 1 after an error."""
    what = "Measure what it costs to freeze the attention and to train one position of each window."
    parser = argparse.ArgumentParser(prog="python -m qllk.study.by_hand", description=what)
    known = f"{', '.join(corpus_names())} or a path"
    parser.add_argument("--corpus", default="stdlib", help=f"{known}; default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=1, help="processes per batch; default: 1")
    args = parser.parse_args(arguments)
    try:
        text = corpus(args.corpus)
        held_out = text.valid[: 1 << 17]
        alphabet = np.union1d(text.train, held_out)  # every byte that occurs is a character
        shape = replace(_SMALL, vocab_size=len(alphabet))
        ids, valid_ids = (
            np.searchsorted(alphabet, data).astype(np.uint8) for data in (text.train, held_out)
        )
        rows = compare(shape, ids, valid_ids, steps=args.steps, processes=args.processes)
        print(f"{text.name}, {len(alphabet)} characters, {args.steps} steps\n")
        print(f"{'held-out nats per character at':32}{'all':>7}{'last':>7}{'seconds':>10}")
        for row in rows:
            print("{variant:32}{all:7.3f}{last:7.3f}{seconds:10.1f}".format(**row), flush=True)
        for name, nats in table_losses(text.train, held_out).items():
            print(f"{name + ' table':32}{nats:7.3f}")
    except (ValueError, OSError, ImportError) as error:
        print(f"qllk: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
