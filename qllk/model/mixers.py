"""All layers that mix over time, by name, with one signature: `y, state = mixer(x, state, mask)`.

x and y are (B,T,D) for any T >= 1. `state=None` is the start of a sequence. The returned state is a
new value, and the old one stays valid. Training uses a long x and drops the state, prefill keeps
it, decoding is T = 1: there is no `step`, no cache object and no mode. A state's `kind` is its
mixer's name in MIXERS.

`mask` hides keys in addition to those that the mixer hides itself: a `Mask` of documents or of
padding, (B,N) for the N steps of the state and of x. Recurrent mixers refuse one.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..checks import build_part, check_positive
from ..spec import Part, as_part
from .attention import LatentAttention, SoftmaxAttention
from .layers import ResidualLinear
from .linformer import Linformer
from .mamba import Mamba, Mamba2
from .masks import Mask
from .minimal import MinGRU, MinLSTM
from .patching import PatchPath, PatchState
from .positions import NoPositions
from .recurrent import CumsumMixer, DeltaRule, GatedConv, LinearAttention
from .retention import LinearTransformer, Retention
from .rwkv import RWKV4ChannelMix, RWKV4TimeMix, RWKV7ChannelMix, RWKV7TimeMix


class FoldedMixer(nn.Module):
    """Mix on a slow clock: fold R steps into one, run any mixer over the folds, unfold ("MELF").

        y = W_o x + PatchPath(x)

    Over folds, the N^2 pairs of attention become N^2 / R^2. MELF as published unfolds onto the
    steps that it has folded, and leaks; here a fold contributes to the steps after it, and each
    step's own value is added directly. `Spec.patch` does the same with a whole stack.

    Options  size R, steps per fold; mixer, a part that runs over the folds
    State    PatchState: (2 R - 1) D numbers and the inner mixer's, of R times fewer steps
    Cost     time O(T D^2), and that of the inner mixer for T / R steps
    Paper    MELF in QLLK 1.0 (2025), aligned as in `patching`
    Raises   ValueError when size is below one, or mixer is not a part
    """

    def __init__(
        self, d_model: int, positions: NoPositions | None = None, *, size: int, mixer: Part
    ):
        super().__init__()
        check_positive("folding", size=size)
        part = as_part(mixer, "folding: mixer")
        inner = build_part(MIXERS, part, "mixer", (d_model, positions))
        self.path = PatchPath(d_model, size, inner, d_model)
        self.out = ResidualLinear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, state: PatchState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, PatchState]:
        hints, state = self.path(x, state, mask)
        return self.out(x) + hints, state


MIXERS = {
    "cumsum": CumsumMixer,
    "softmax": SoftmaxAttention,
    "latent": LatentAttention,
    "linear": LinearAttention,
    "delta": DeltaRule,
    "conv": GatedConv,
    "folded": FoldedMixer,
    "rwkv4": RWKV4TimeMix,
    "rwkv4-channel": RWKV4ChannelMix,
    "rwkv7": RWKV7TimeMix,
    "rwkv7-channel": RWKV7ChannelMix,
    "linear-2020": LinearTransformer,
    "retention": Retention,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "linformer": Linformer,
}
