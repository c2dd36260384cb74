"""Modules around the kernels, one signature for all: `y, state = mixer(x, state)`.

x and y are (B,T,D) for any T >= 1. `state=None` means that nothing came before. The returned state
is a new value; the old one stays valid. Training passes a long x and drops the state, prefill keeps
it, decoding is T = 1: there is no `step`, no cache object and no mode. A state says its `kind`, the
mixer's name in MIXERS.

Those of MASKED take a third argument, `keep` (B,1,T,N): which of N keys each query may see, beside
what the mixer itself forbids. The rest remember no single keys, so they can hide none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..checks import build_part, check_positive, look_up
from ..spec import as_part
from . import kernels
from .layers import NORMS, RMSNorm
from .patching import PatchPath
from .positions import NoPositions


class SumState(NamedTuple):
    """State of the cumulative sum: D numbers, and how many steps they add up."""

    S: Tensor  # (B,D)
    t: int
    kind = "cumsum"


class LinearState(NamedTuple):
    """State of linear attention: one K x V matrix per head."""

    S: Tensor  # (B,H,K,V)
    kind = "linear"


class DeltaState(NamedTuple):
    """State of the delta rule: as Memory, each key's value replaced and not added to."""

    S: Tensor  # (B,H,K,V)
    kind = "delta"


class KVState(NamedTuple):
    """State of softmax attention: the keys and values still in sight, and the steps so far."""

    k: Tensor  # (B,H,N,K)
    v: Tensor  # (B,H,N,K)
    t: int
    kind = "softmax"


class CrossState(NamedTuple):
    """State of cross attention: keys and values of the other text, and which of them to see.

    It is of no kind, since it is no memory of the text that the layer mixes.
    """

    k: Tensor  # (B,H,N,K)
    v: Tensor  # (B,H,N,K)
    keep: Tensor | None  # (B,1,1,N), none means all


class LatentState(NamedTuple):
    """State of latent attention: what keys and values are made from, and the steps so far."""

    c: Tensor  # (B,N,L)
    r: Tensor  # (B,N,U), turned to its position
    t: int
    kind = "latent"


class ConvState(NamedTuple):
    """State of a convolution: its last W - 1 inputs."""

    x: Tensor  # (B,W-1,D)
    kind = "conv"


def log_decays(d_model, shortest, longest) -> Tensor:
    """Log decays, spread evenly on a log scale from one half-life in steps to another: (D,)."""
    steps = torch.logspace(math.log2(shortest), math.log2(longest), d_model, base=2.0)
    return -math.log(2.0) / steps


class CumsumMixer(nn.Module):
    """The cumulative sum with fused projections, a norm on the sum and a sigmoid gate.

        y = W_o ( sigmoid(W_g x) * W_q x * normaliser(S) )        S = running sum of W_k x * W_v x

    Options  normaliser   what keeps a growing sum readable (see NORMALISERS)
             half_lives   none, the plain sum; or (shortest, longest) in steps: every channel
                          forgets at its own fixed speed
    State    Sum: D numbers
    Cost     time O(T D^2), all of it in the projections; the sum itself is O(T D)
    Paper    QLLK 1.1 for the fused kernel; the output projection and the norm are ours
    Raises   ValueError when half_lives are not two numbers above 0
    """

    def __init__(self, d_model, positions=None, *, normaliser="rms", half_lives=None):
        super().__init__()
        self.qkvg = nn.Linear(d_model, 4 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.normalise = look_up(NORMALISERS, normaliser, "normaliser")
        decay = None if half_lives is None else log_decays(d_model, *_check_half_lives(half_lives))
        # A sum that forgets in a few steps stays small, one that hardly forgets grows: the gain
        # gives all channels the same size on input of mean zero.
        gain = torch.ones(d_model) if decay is None else (1 - (2 * decay).exp()).sqrt()
        self.register_buffer("log_decay", decay, persistent=False)
        self.register_buffer("gain", gain, persistent=False)

    def forward(self, x, state=None):
        S, t = state or (None, 0)
        q, k, v, g = self.qkvg(x).chunk(4, dim=-1)
        sums, S = kernels.running_sum(k * v * self.gain, S, self.log_decay)
        counts = torch.arange(t + 1, t + 1 + x.shape[1], device=x.device)[:, None]  # (T,1)
        y = q * self.normalise(sums, counts) * g.sigmoid()
        return self.out(y.to(q.dtype)), SumState(S, t + x.shape[1])


def _plain(sums, counts):
    """The sum as it is, growing with length."""
    return sums


def by_count(sums, counts):
    """The mean so far. Shapes  sums (B,T,D), counts (T,1) -> (B,T,D)"""
    return sums / counts


def by_root(sums, counts):
    """Steady for input of mean zero, whose sum grows as sqrt(t)."""
    return sums * counts.rsqrt()


def by_rms(sums, counts):
    """Scaled to root mean square 1 over the channels: the size is lost, the direction kept."""
    return nn.functional.rms_norm(sums, sums.shape[-1:])


NORMALISERS = {"none": _plain, "count": by_count, "root": by_root, "rms": by_rms}


class Attention(nn.Module):
    """Queries look at keys: `look` makes both from what `forward` is given, `attend` averages."""

    def weights(self, *inputs):
        """How much each query takes of each key, by the kernel itself: what it makes of values
        that name their keys.

        Shapes   inputs as of forward  ->  (B,H,T,N), each row a share of 1
        """
        q, k, _, keep = self.look(*inputs)
        return self.attend(q, k, _one_hot_values(k), keep)


class SelfAttention(Attention):
    """What every attention of a text to itself is made of: heads, projections, positions."""

    def __init__(self, d_model, positions, heads, bias):
        super().__init__()
        self.heads = _check_heads(heads, d_model)
        positions = positions or NoPositions(d_model)
        self.turn, self.bias = positions.turn, positions.bias  # the model owns the module
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)


class SoftmaxAttention(SelfAttention):
    """Every query looks at every key before it, or at the last `window` of them and the sinks.

    Options  heads, which divide d_model
             window   in steps, none means all
             sinks    the first steps of all, which stay in sight of every window
             tile     compute tile by tile, in Python and slowly, see `kernels.tiled_attention`;
                      none means torch's fused kernel
             bias     in the projections
    Raises   ValueError when window, sinks, tile, positions and mask do not fit each other
    State    KV: 2 D numbers per step still in sight; with a window at most W - 1 + sinks steps
    Cost     time O(T N D) for N keys; adding to the cache copies it, the same order as reading it
    Paper    Vaswani 2017, 1706.03762; sinks: StreamingLLM, Xiao 2023, 2309.17453
    """

    def __init__(
        self, d_model, positions=None, *, heads, window=None, sinks=0, tile=None, bias=False
    ):
        super().__init__(d_model, positions, heads, bias)
        self.window, self.sinks = _check_window(window, sinks)
        self.tile = _check_tile(tile, window)
        if (sinks or tile) and self.bias(heads, 1, 1) is not None:
            raise ValueError(
                f"positions that weigh distances do not know how far sinks are by now, and tiles "
                f"take no weights; got sinks={sinks}, tile={tile}. Use rotary positions or none"
            )

    def forward(self, x, state=None, keep=None):
        q, k, v, keep = self.look(x, state, keep)
        o = self.attend(q, k, v, keep)
        if self.window:
            k, v = self.in_sight(k), self.in_sight(v)
        return self.out(_join_heads(o)), KVState(k, v, steps_before(state) + x.shape[1])

    def look(self, x, state=None, keep=None):
        q, k, v = _split_heads(self.qkv(x), 3, self.heads)
        q, k = self.turn(q, steps_before(state)), self.turn(k, steps_before(state))
        if state:
            k, v = torch.cat((state.k, k), dim=2), torch.cat((state.v, v), dim=2)
        return q, k, v, keep

    def in_sight(self, x):
        """The sinks and the last W - 1, for the next query brings its own key."""
        start = max(self.sinks, x.shape[2] - self.window + 1)
        return torch.cat((x[:, :, : self.sinks], x[:, :, start:]), dim=2)

    def attend(self, q, k, v, keep):
        if keep is not None and (self.sinks or self.tile):
            raise ValueError(
                f"attention with sinks or tiles takes no mask, such as that of rows of several "
                f"documents; got sinks={self.sinks}, tile={self.tile}. Use neither of them"
            )
        if self.tile:
            return kernels.tiled_attention(q, k, v, self.tile)
        bias = self.bias(self.heads, q.shape[2], k.shape[2])
        return kernels.causal_attention(q, k, v, self.window, self.sinks, keep, bias)


class LatentAttention(Attention):
    """Softmax attention that remembers one latent per step, not keys and values per head. "MLA".

        c = norm(W_c x)      r = turn(W_r x)      k_h = [W_k,h c, r]      v_h = W_v,h c

    Positions turn only r and the last `d_rope` channels of each query: a turn between W_q and W_k
    would keep the two from being multiplied into one, which is what the short form lives on.

    Options  heads, of any number: their widths do not depend on d_model
             d_latent   L, numbers kept per step
             d_nope     K, channels of a head's queries and keys that know no position
             d_rope     U, channels that do, even if they are to turn; one key serves all heads
             d_value    V, channels of a head's values
             d_query    width of the latent that queries are made of, none for none
             norm       of the latents (see NORMS)
    State    Latent: L + U numbers per step
    Cost     time O(T D H (K + U + V)), and that of `kernels.latent_attention` for a first piece,
             of `kernels.absorbed_attention` for one that continues: those are short
    Paper    DeepSeek-V2, 2405.04434, 2.1; compressed queries: equations 12 and 13
    Raises   ValueError when a size is below one
    """

    def __init__(
        self,
        d_model,
        positions=None,
        *,
        heads,
        d_latent,
        d_nope,
        d_rope,
        d_value,
        d_query=None,
        norm="rms",
    ):
        super().__init__()
        sizes = {"d_latent": d_latent, "d_nope": d_nope, "d_rope": d_rope, "d_value": d_value}
        check_positive("latent attention", heads=heads, **sizes)
        self.heads, self.d_latent = heads, d_latent
        self.d_nope, self.d_rope = d_nope, d_rope
        self.turn = (positions or NoPositions(d_model)).turn  # the model owns the module
        norm = look_up(NORMS, norm, "norm")
        self.query = _query_projection(d_model, d_query, heads * (d_nope + d_rope), norm)
        self.down = nn.Linear(d_model, d_latent + d_rope, bias=False)
        self.norm = norm(d_latent)
        self.up = nn.Linear(d_latent, heads * (d_nope + d_value), bias=False)
        self.out = nn.Linear(heads * d_value, d_model, bias=False)

    def forward(self, x, state=None, keep=None):
        q, c, r = self.look(x, state)
        attend = kernels.absorbed_attention if state else kernels.latent_attention
        o = attend(q, c, r, *self.to_keys_and_values(), keep)
        return self.out(_join_heads(o)), LatentState(c, r, steps_before(state) + x.shape[1])

    def weights(self, x, state=None, keep=None):
        q, c, r = self.look(x, state)
        k = kernels.latent_keys(c, r, self.to_keys_and_values()[0])
        return kernels.causal_attention(q, k, _one_hot_values(k), keep=keep)

    def look(self, x, state=None):
        """Queries, and what keys and values are made from."""
        t = steps_before(state)
        (q,) = _split_heads(self.query(x), 1, self.heads)
        plain, turned = q.split((self.d_nope, self.d_rope), dim=-1)
        q = torch.cat((plain, self.turn(turned, t)), dim=-1)
        c, r = self.down(x).split((self.d_latent, self.d_rope), dim=-1)
        c, r = self.norm(c), self.turn(r[:, None], t)[:, 0]
        if state:
            c, r = torch.cat((state.c, c), dim=1), torch.cat((state.r, r), dim=1)
        return q, c, r

    def to_keys_and_values(self):
        """The matrix `up` head by head.  Shapes   -> (H,K,L), (H,V,L)"""
        heads = self.up.weight.unflatten(0, (self.heads, -1))
        return heads.split((self.d_nope, heads.shape[1] - self.d_nope), dim=1)


def _query_projection(d_model, d_query, width, norm):
    """W_q, or W_uq norm(W_dq x) through a latent of d_query.  Shapes  (B,T,D) -> (B,T,width)"""
    if d_query is None:
        return nn.Linear(d_model, width, bias=False)
    check_positive("latent attention", d_query=d_query)
    down, up = nn.Linear(d_model, d_query, bias=False), nn.Linear(d_query, width, bias=False)
    return nn.Sequential(down, norm(d_query), up)


class BidirectionalAttention(SelfAttention):
    """Every query looks at every key, before it and after: for encoders, which read texts whole.

    Options  heads, which divide d_model; bias in the projections
    State    none: nothing can be read on to a text whose end was seen
    Cost     time O(T^2 D)
    Paper    BERT, Devlin 2018, 1810.04805
    """

    def __init__(self, d_model, positions=None, *, heads, bias=False):
        super().__init__(d_model, positions, heads, bias)

    def forward(self, x, state=None, keep=None):
        return self.out(_join_heads(self.attend(*self.look(x, state, keep)))), None

    def look(self, x, state=None, keep=None):
        q, k, v = _split_heads(self.qkv(x), 3, self.heads)
        return self.turn(q, 0), self.turn(k, 0), v, keep

    def attend(self, q, k, v, keep):
        bias = self.bias(self.heads, q.shape[2], k.shape[2])
        return kernels.fused_attention(q, k, v, keep, bias)


class CrossAttention(Attention):
    """Every query looks at the keys of another text, the memory, which `read` projects once.

    Options  heads, which divide d_model; bias in the projections
    State    Source: 2 D numbers for each step of the memory, whatever T, and its mask
    Cost     time O(T N D) for a memory of N
    Paper    Vaswani 2017, 1706.03762, 3.2.3
    """

    def __init__(self, d_model, *, heads, bias=False):
        super().__init__()
        self.heads = _check_heads(heads, d_model)
        self.q = nn.Linear(d_model, d_model, bias=bias)
        self.kv = nn.Linear(d_model, 2 * d_model, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def read(self, memory, keep=None) -> CrossState:
        """The state to start from.  Shapes   memory (B,N,D)   keep (B,1,1,N), none means all"""
        return CrossState(*_split_heads(self.kv(memory), 2, self.heads), keep)

    def forward(self, x, state):
        return self.out(_join_heads(self.attend(*self.look(x, state)))), state

    def look(self, x, state):
        (q,) = _split_heads(self.q(x), 1, self.heads)
        return q, *state

    attend = staticmethod(kernels.fused_attention)


class LinearAttention(nn.Module):
    """A matrix of key-value products per head, with no, fixed or learned forgetting.

    Options  heads, which divide d_model
             decay   "none"; "fixed", one speed per head (RetNet); "head" or "channel", computed
                     from the input, one per head (Mamba-2) or per key channel (GLA)
    State    Memory: D^2 / heads numbers
    Cost     time O(T D (C + D / heads)) in chunks of C
    Paper    Katharopoulos 2020, 2006.16236; RetNet, 2307.08621; GLA, 2312.06635
    """

    def __init__(self, d_model, positions=None, *, heads, decay="none"):
        super().__init__()
        self.heads = _check_heads(heads, d_model)
        self.qkvg = nn.Linear(d_model, 4 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(d_model // heads)
        self.decay = look_up(DECAYS, decay, "decay")(d_model, heads)

    def forward(self, x, state=None):
        q, k, v, g = _split_heads(self.qkvg(x), 4, self.heads)
        o, state = self.remember(x, q, k, v, state.S if state else None)
        return self.out(_join_heads(self.norm(o) * g.sigmoid())), state

    def remember(self, x, q, k, v, S):
        o, S = kernels.linear_attention(q, k, v, self.decay(x), S)
        return o, LinearState(S)


class DeltaRule(LinearAttention):
    """Linear attention that corrects itself: what a key held before is replaced, not added to.

    How far is learned: a strength in 0 … 1 per head and step.

    Options  heads, which divide d_model; decay as in LinearAttention: "none" is DeltaNet, "head"
             gated DeltaNet, "channel" Kimi's
    State    Corrected: D^2 / heads numbers
    Cost     as LinearAttention, and one triangular solve per chunk, O(T C D)
    Paper    DeltaNet, 2406.06484; gated DeltaNet, 2412.06464, without their short convolutions
    """

    def __init__(self, d_model, positions=None, *, heads, decay="none"):
        super().__init__(d_model, positions, heads=heads, decay=decay)
        self.strength = nn.Linear(d_model, heads, bias=False)

    def remember(self, x, q, k, v, S):
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        beta = self.strength(x).sigmoid().transpose(1, 2)[..., None]  # (B,H,T,1)
        o, S = kernels.delta_rule(q, k, v, beta, self.decay(x), S)
        return o, DeltaState(S)


class NoDecay(nn.Module):
    """Never forget. Each decay maps x (B,T,D) to log decays (B,H,T,1 or K), or to none."""

    def __init__(self, d_model, heads):
        super().__init__()

    def forward(self, x):
        return None


class FixedDecay(nn.Module):
    """One fixed speed per head, 1 - 2^-(5+h).  RetNet, 2307.08621, equation 8."""

    def __init__(self, d_model, heads):
        super().__init__()
        speeds = 2.0 ** -(5.0 + torch.arange(heads))
        self.register_buffer("log_decay", torch.log1p(-speeds), persistent=False)

    def forward(self, x):
        return self.log_decay[:, None, None].to(x.dtype).expand(x.shape[0], -1, x.shape[1], 1)


class HeadDecay(nn.Module):
    """One speed per head, computed from the input."""

    def __init__(self, d_model, heads):
        super().__init__()
        self.heads = heads
        self.speed = nn.Linear(d_model, self.speeds(d_model, heads))

    @staticmethod
    def speeds(d_model, heads):
        return heads

    def forward(self, x):
        # logsigmoid/16 starts near exp(-0.04) a step: a half-life of 16.  GLA, 2312.06635, 4.4.
        log_decay = nn.functional.logsigmoid(self.speed(x)) / 16.0
        return log_decay.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ChannelDecay(HeadDecay):
    """One speed per key channel, computed from the input."""

    @staticmethod
    def speeds(d_model, heads):
        return d_model


DECAYS = {"none": NoDecay, "fixed": FixedDecay, "head": HeadDecay, "channel": ChannelDecay}


class GatedConv(nn.Module):
    """The local mixer: a causal depthwise convolution with a gate.

        y = W_o ( silu(W_g x) * conv(W_x x) )

    Options  width W, in steps
    State    Past: (W-1) D numbers
    Cost     time O(T D^2), all but O(T W D) of it in the projections
    """

    def __init__(self, d_model, positions=None, *, width):
        super().__init__()
        check_positive("a convolution", width=width)
        self.xg = nn.Linear(d_model, 2 * d_model, bias=False)
        self.taps = nn.Parameter(torch.randn(width, d_model) * width**-0.5)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, state=None):
        x, g = self.xg(x).chunk(2, dim=-1)
        y, past = kernels.causal_conv(x, self.taps, state.x if state else None)
        return self.out(nn.functional.silu(g) * y), ConvState(past)


class FoldedMixer(nn.Module):
    """Mix on a slow clock: fold R steps into one, run any mixer over the folds, unfold. "MELF".

        y = W_o x + PatchPath(x)

    Over folds, the N^2 pairs of attention are N^2 / R^2. MELF as published unfolds onto the steps
    that it has folded, and leaks; here a fold speaks to the steps after it, and a step's own value
    passes by it. `Spec.patch` does the same with a whole stack.

    Options  size R, steps per fold; mixer, a part that runs over the folds
    State    PatchState: (2 R - 1) D numbers and the inner mixer's state, which grows R times slower
    Cost     time O(T D^2), and that of the inner mixer for T / R steps
    Paper    MELF in QLLK 1.0 (2025), aligned as in `patching`
    Raises   ValueError when size is below one, or mixer is no part
    """

    def __init__(self, d_model, positions=None, *, size, mixer):
        super().__init__()
        check_positive("folding", size=size)
        inner = build_part(MIXERS, as_part(mixer, "folding: mixer"), "mixer", d_model, positions)
        self.path = PatchPath(d_model, size, inner, d_model)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, state=None):
        hints, state = self.path(x, state)
        return self.out(x) + hints, state


def _check_window(window, sinks):
    if window is None and sinks:
        raise ValueError(f"sinks={sinks} need a window: without one every step stays in sight")
    if window is not None:
        check_positive("a window", steps=window)
    if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
        raise ValueError(f"sinks must be a whole number, 0 or more, got {sinks!r}")
    return window, sinks


def _check_half_lives(half_lives):
    match half_lives:
        case [int() | float(), int() | float()] if all(0 < x < math.inf for x in half_lives):
            return half_lives
    raise ValueError(f"half_lives must be two numbers of steps above 0, got {half_lives!r}")


def _check_tile(tile, window):
    if tile is not None:
        check_positive("attention", tile=tile)
        if window is not None:
            raise ValueError(
                f"tiled attention has no window, got tile={tile}, window={window}; set one of them"
            )
    return tile


def _check_heads(heads, d_model):
    check_positive("a mixer", heads=heads)
    if d_model % heads:
        raise ValueError(f"heads={heads} must divide d_model={d_model}")
    return heads


def steps_before(state) -> int:
    """How many were read, as a state with a counter says."""
    return state.t if state else 0


def _one_hot_values(k):
    """Values that say which key they are.  Shapes   k (B,H,N,K) -> (B,H,N,N)"""
    return torch.eye(k.shape[2]).to(k).expand(*k.shape[:2], -1, -1)


def _split_heads(x, n, heads):
    """(B,T,n D) -> n tensors (B,H,T,D/H)."""
    return x.unflatten(-1, (n, heads, -1)).permute(2, 0, 3, 1, 4)


def _join_heads(x):
    """(B,H,T,K) -> (B,T,H K)."""
    return x.transpose(1, 2).flatten(2)


MIXERS = {
    "cumsum": CumsumMixer,
    "softmax": SoftmaxAttention,
    "latent": LatentAttention,
    "linear": LinearAttention,
    "delta": DeltaRule,
    "conv": GatedConv,
    "folded": FoldedMixer,
}
# Those that can be kept from seeing, as rows of several documents need.
MASKED = {"softmax", "latent"}
# What encoders mix with, and how decoders look at what an encoder read.
BIDIRECTIONAL_MIXERS = {"softmax": BidirectionalAttention}
CROSS_MIXERS = {"softmax": CrossAttention}
