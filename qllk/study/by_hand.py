"""randyGPT by hand: a character GPT in NumPy, with every gradient written out.

Read it from top to bottom: the parts, each beside its way back; the model; Adam; many processes;
training; and what the original left out. There is one idea in it, the chain rule. `dy` stands for
the gradient of the loss with respect to `y`, and always has the shape of `y`; the way back of a
part turns `dy` into `dx`, from what the way forward kept.

    losses = train(shape, weights, characters, steps=300)        python -m qllk.by_hand

Twin     the same in torch, in tests/test_by_hand.py: gradients equal to 1e-10 in float64
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np

from ..checks import check_positive
from ..probes.baselines import table_losses
from ..text.corpora import corpus, corpus_names

EPSILON = 1e-5  # keeps the norm of a zero vector finite
IGNORED = -1  # a target that is not trained

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """The sizes of one model.

    Raises   ValueError when a size is below one, or the heads do not divide the width
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


# The original's: 13,184 parameters (the 8 letters of "hello world" and 2 specials), then 811,776
# (the 65 characters of tiny Shakespeare and 2 specials).
RANDYGPT_01 = Shape(vocab_size=10, context=8, d_model=32, layers=1, heads=4)
RANDYGPT_03 = Shape(vocab_size=67, context=64, d_model=128, layers=4, heads=8)


def new_weights(shape: Shape, seed=0, dtype=np.float32) -> Weights:
    """Random weights, by name. Their size keeps activations steady and the first loss near ln V.

    Shapes   embed (V,D), positions (T,D), head (D,V); in layer i: i.qkv (D,3D), i.out (D,D),
             i.up (D,4D), i.down (4D,D)
    """
    D, skip = shape.d_model, (2 * shape.layers) ** -0.5  # all layers add to one skip path
    sizes = {"embed": (shape.vocab_size, D, D**-0.5), "positions": (shape.context, D, D**-0.5)}
    for i in range(shape.layers):
        sizes[f"{i}.qkv"] = (D, 3 * D, D**-0.5)
        sizes[f"{i}.out"] = (D, D, skip * D**-0.5)
        sizes[f"{i}.up"] = (D, 4 * D, D**-0.5)
        sizes[f"{i}.down"] = (4 * D, D, skip * (4 * D) ** -0.5)
    sizes["head"] = (D, shape.vocab_size, 0.2 * D**-0.5)
    draw = np.random.default_rng(seed).normal
    return {name: draw(0, std, (n, m)).astype(dtype) for name, (n, m, std) in sizes.items()}


# ---------------------------------------------------------------- parts, and their ways back


def linear_back(dy, x, W):
    """The way back of y = x W: everything that x fed sends its gradient home, and so for W.

        dx = dy W^T        dW = x^T dy, summed over all positions

    Shapes   dy (B,T,M), x (B,T,N), W (N,M) -> dx (B,T,N), dW (N,M)
    """
    return dy @ W.T, x.reshape(-1, W.shape[0]).T @ dy.reshape(-1, W.shape[1])


def norm(x):
    """y = x r with r = 1 / rms(x): every vector gets the same length. No weight.

    Shapes   (B,T,D) -> y (B,T,D), r (B,T,1)
    Paper    RMSNorm, Zhang and Sennrich 2019, 1910.07467
    """
    r = ((x * x).mean(-1, keepdims=True) + EPSILON) ** -0.5
    return x * r, r


def norm_back(dy, y, r):
    """dx = r (dy - y mean(y dy)): what would only lengthen y is lost, as y cannot get longer."""
    return r * (dy - y * (y * dy).mean(-1, keepdims=True))


def softmax(x):
    """p = exp(x) / sum(exp(x)); subtracting the largest first changes nothing but overflow."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_back(dp, p):
    """dx = p (dp - sum(p dp)): raising one chance lowers all the others."""
    return p * (dp - (p * dp).sum(-1, keepdims=True))


def attention(qkv, heads):
    """Every query looks at every key up to its own position.

        p = softmax(q k^T / sqrt(K))        o = p v

    Shapes   qkv (B,T,3D) -> o (B,T,D), and for the way back q, k, v (B,H,T,K), p (B,H,T,T)
    Cost     time and memory O(T^2): p is kept
    """
    B, T, _ = qkv.shape
    q, k, v = qkv.reshape(B, T, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    future = np.triu(np.ones((T, T), bool), 1)
    p = softmax(np.where(future, -np.inf, scores))
    return (p @ v).swapaxes(1, 2).reshape(B, T, -1), (q, k, v, p)


def attention_back(do, kept):
    """Back through the mean of values, the softmax and the scores: do (B,T,D) -> dqkv (B,T,3D)."""
    q, k, v, p = kept
    B, H, T, K = q.shape
    do = do.reshape(B, T, H, K).swapaxes(1, 2)  # (B,H,T,K)
    dv = p.swapaxes(-1, -2) @ do
    dscores = softmax_back(do @ v.swapaxes(-1, -2), p) * K**-0.5  # zero where p is: the future
    dq, dk = dscores @ k, dscores.swapaxes(-1, -2) @ q
    return np.stack((dq, dk, dv)).transpose(1, 3, 0, 2, 4).reshape(B, T, -1)


def attend(x, W_qkv, W_out, heads):
    """x + attention of its norm: the first half of a layer."""
    y, r = norm(x)
    o, kept = attention(y @ W_qkv, heads)
    return x + o @ W_out, (W_qkv, W_out, y, r, o, kept)


def attend_back(dz, kept):
    """The skip hands dz on as it is; the other branch adds what it finds."""
    W_qkv, W_out, y, r, o, for_attention = kept
    do, dW_out = linear_back(dz, o, W_out)
    dy, dW_qkv = linear_back(attention_back(do, for_attention), y, W_qkv)
    return dz + norm_back(dy, y, r), dW_qkv, dW_out


def think(x, W_up, W_down):
    """x + relu(norm(x) W_up)^2 W_down: the second half.  Primer, So 2021, 2109.08668, 3."""
    y, r = norm(x)
    h = np.maximum(y @ W_up, 0)
    return x + (h * h) @ W_down, (W_up, W_down, y, r, h)


def think_back(dz, kept):
    """d(h^2) = 2 h dh, which is zero as well where relu was."""
    W_up, W_down, y, r, h = kept
    dh2, dW_down = linear_back(dz, h * h, W_down)
    dy, dW_up = linear_back(2 * h * dh2, y, W_up)
    return dz + norm_back(dy, y, r), dW_up, dW_down


def cross_entropy(logits, targets):
    """Surprise at each target in nats, and the gradient of their sum.

        loss = -log p[target]        dlogits = p - onehot(target)        p = softmax(logits)

    Shapes   logits (B,T,V), targets (B,T), some IGNORED -> (B,T), (B,T,V); zeros where ignored
    """
    trained = (targets != IGNORED)[..., None]
    which = np.where(trained, targets[..., None], 0)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    dlogits = np.exp(log_p)
    chosen = np.take_along_axis(log_p, which, -1)
    np.put_along_axis(dlogits, which, np.exp(chosen) - 1, -1)
    return (-chosen * trained)[..., 0], dlogits * trained


# ---------------------------------------------------------------- the model


def forward(shape: Shape, weights: Weights, ids):
    """Logits for the character after each, and what the way back needs.

    Shapes   ids (B,T) -> logits (B,T,V)
    Raises   ValueError when ids are longer than the context or outside the vocabulary
    """
    check(shape, "ids", ids)
    x, kept = weights["embed"][ids] + weights["positions"][: ids.shape[1]], []
    for i in range(shape.layers):
        x, for_attend = attend(x, weights[f"{i}.qkv"], weights[f"{i}.out"], shape.heads)
        x, for_think = think(x, weights[f"{i}.up"], weights[f"{i}.down"])
        kept.append((for_attend, for_think))
    return x @ weights["head"], (x, kept)


def backward(weights: Weights, ids, dlogits, kept) -> Weights:
    """The gradient of every weight: `forward` read from its last line to its first."""
    grads, (x, layers) = {}, kept
    dx, grads["head"] = linear_back(dlogits, x, weights["head"])
    for i, (for_attend, for_think) in reversed(list(enumerate(layers))):
        dx, grads[f"{i}.up"], grads[f"{i}.down"] = think_back(dx, for_think)
        dx, grads[f"{i}.qkv"], grads[f"{i}.out"] = attend_back(dx, for_attend)
    for table in ("embed", "positions"):
        grads[table] = np.zeros_like(weights[table])
    np.add.at(grads["embed"], ids, dx)  # a character that stands in many places gets their sum
    grads["positions"][: ids.shape[1]] = dx.sum(0)
    return grads


def check(shape, what, ids):
    """Refuse what NumPy would not: an index of -1 would quietly take the last character."""
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


def sums(shape, weights, ids, targets):
    """Loss and gradients, summed over the targets: sums of shares add up to the sum of all."""
    logits, kept = forward(shape, weights, ids)
    losses, dlogits = cross_entropy(logits, targets)
    return losses.sum(), backward(weights, ids, dlogits, kept)


def gradients(shape: Shape, weights: Weights, ids, targets, shares=1, run=map):
    """Mean loss over the targets that are trained, and its gradients.

    With `shares` above 1 the rows are cut into as many parts, and `run` works on them: give it the
    `map` of a pool of processes, and each gets the weights and its rows, and sends its sums back.

    Shapes   ids, targets (B,T), some IGNORED -> loss, gradients shaped as the weights
    Raises   ValueError when there is no target, or one does not fit the ids or the vocabulary, or
             a share would have no row
    """
    trained = targets != IGNORED
    if targets.shape != ids.shape or not trained.any():
        raise ValueError(
            f"targets must be shaped as the ids, {ids.shape}, and not all be IGNORED; got "
            f"{targets.shape}, {trained.sum()} of them to train"
        )
    check(shape, "targets", np.where(trained, targets, 0))
    if not 1 <= shares <= len(ids):
        raise ValueError(f"shares={shares} must lie in 1 … {len(ids)}, the rows of the batch")
    rows = np.array_split(ids, shares), np.array_split(targets, shares)
    losses, parts = zip(*run(partial(sums, shape, weights), *rows), strict=True)
    count = int(trained.sum())  # Python's, since NumPy's would turn float32 into float64
    return sum(losses) / count, {name: sum(p[name] for p in parts) / count for name in weights}


@contextmanager
def workers(processes: int) -> Iterator:
    """A `map` over so many processes; over one, the plain one. They live as long as the `with`.

    Each multiplies matrices on every core unless OMP_NUM_THREADS=1 is set before Python starts.
    """
    if processes == 1:
        yield map
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            yield pool.map


class Adam:
    """Steps as long as the gradient is steady: its mean over its root mean square, so far.

        m += (1 - b1) (g - m)        v += (1 - b2) (g^2 - v)
        w -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Both start from zero, and the divisions by 1 - b^t make up for that. The weights given here are
    the ones that learn; they are changed in place.

    State    m and v, two numbers per weight
    Paper    Kingma and Ba 2014, 1412.6980, algorithm 1
    """

    def __init__(self, weights: Weights, lr=3e-4, betas=(0.9, 0.999), eps=1e-8):
        self.weights, self.lr, self.betas, self.eps, self.t = weights, lr, betas, eps, 0
        self.m = {name: np.zeros_like(w) for name, w in weights.items()}
        self.v = {name: np.zeros_like(w) for name, w in weights.items()}

    def step(self, grads: Weights) -> None:
        self.t += 1
        b1, b2 = self.betas
        for name, w in self.weights.items():
            m, v, g = self.m[name], self.v[name], grads[name]
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            w -= self.lr * (m / (1 - b1**self.t)) / (np.sqrt(v / (1 - b2**self.t)) + self.eps)


def last_start(characters, T) -> int:
    """Where the last window begins that still has a target for each of its T characters."""
    if len(characters) <= T:
        raise ValueError(f"the text has {len(characters)} characters, a window needs {T + 1}")
    return len(characters) - T - 1


def windows(characters, starts, T):
    """T characters from each start, and the one after each: (B,T), (B,T)."""
    cut = characters[starts[:, None] + np.arange(T + 1)].astype(np.int64)  # (B,T+1)
    return cut[:, :-1], cut[:, 1:].copy()


ATTENTION = ("qkv", "out")  # what the original never changed: a third of its parameters


def train(
    shape: Shape, weights: Weights, characters, *, steps: int, batch=32, lr=3e-3, seed=0,
    frozen=(), last=None, processes=1,
) -> list[float]:  # fmt: skip
    """Learn from random windows of a text, in place. Returns the mean loss of each step.

    `frozen` names parts of all layers that stay as they are, such as ATTENTION: the gradient still
    passes through them. `last` trains the last positions of each window only, none means all.

    Shapes   characters (n,) ids
    Raises   ValueError when the text is shorter than a window, or there is no such part or position
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
            starts = generator.integers(last_start(characters, T) + 1, size=batch)
            ids, targets = windows(characters, starts, T)
            targets[:, : T - (last or T)] = IGNORED
            loss, grads = gradients(shape, weights, ids, targets, processes, run)
            adam.step(grads)
            losses.append(float(loss))
    return losses


def loss_by_position(shape: Shape, weights: Weights, characters):
    """Mean surprise at each place of the window, over neighbouring windows of a text.

    Shapes   characters (n,) ids -> nats (T,)
    """
    T, losses = shape.context, []
    starts = np.arange(0, last_start(characters, T) + 1, T)
    for some in np.array_split(starts, len(starts) // 32 + 1):
        ids, targets = windows(characters, some, T)
        losses.append(cross_entropy(forward(shape, weights, ids)[0], targets)[0])
    return np.concatenate(losses).mean(0)


# ---------------------------------------------------------------- what the original left out

VARIANTS = {
    "everything learns": {},
    "attention frozen": {"frozen": ATTENTION},
    "one position a window": {"last": 1},
    "both, as the original": {"frozen": ATTENTION, "last": 1},
}
SMALL = replace(RANDYGPT_03, d_model=64, layers=2)  # a fifteenth of its arithmetic


def compare(shape: Shape, train_ids, valid_ids, **recipe) -> Iterator[dict]:
    """Each of VARIANTS from the same weights, on the same windows, for the same steps: a row each.

    The losses are held-out nats per character: at all positions, and at the last of a window, the
    only one that the original trained.
    """
    for name, options in VARIANTS.items():
        weights, start = new_weights(shape), time.perf_counter()
        train(shape, weights, train_ids, **recipe, **options)
        seconds = time.perf_counter() - start
        nats = loss_by_position(shape, weights, valid_ids)
        yield {"variant": name, "all": nats.mean(), "last": nats[-1], "seconds": seconds}


def main(arguments=None) -> int:
    """What freezing the attention costs, and training one position of each window."""
    parser = argparse.ArgumentParser(prog="python -m qllk.by_hand", description=main.__doc__)
    known = ", ".join(corpus_names())
    parser.add_argument("--corpus", default="stdlib", help=f"{known} or a path; else %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="else %(default)s")
    parser.add_argument("--processes", type=int, default=1, help="that share each batch; else 1")
    args = parser.parse_args(arguments)
    try:
        text = corpus(args.corpus)
        held_out = text.valid[: 1 << 17]
        alphabet = np.union1d(text.train, held_out)  # a character is a byte that occurs
        shape = replace(SMALL, vocab_size=len(alphabet))
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
    except (ValueError, OSError) as error:
        print(f"qllk: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
