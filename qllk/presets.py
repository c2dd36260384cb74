"""The systems as rows of data. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from .checks import look_up
from .spec import Patch, Spec

CONV = ("conv", {"width": 8})
# Channels that forget with half-lives from one patch to 256 of them: 8 to 2,048 bytes.
FADING_SUM = ("cumsum", {"normaliser": "rms", "half_lives": [1, 256]})
_SQUARED_RELU = ("relu2", {"ratio": 4})


def _qllk_2(d_model: int) -> Spec:
    """One byte layer, the cumulative sum over patches of eight, two byte layers on both."""
    return Spec(
        d_model=d_model,
        layers=3,
        mixers=(CONV,),
        mlp=_SQUARED_RELU,
        patch=Patch(size=8, d_model=d_model, layers=2, mixers=(FADING_SUM,), after=2),
    )


def _gpt(d_model: int, layers: int, heads: int) -> Spec:
    """Softmax attention over everything before, with rotary positions; the rest as in qllk-2."""
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(("softmax", {"heads": heads}),),
        mlp=_SQUARED_RELU,
        positions="rotary",
    )


def _gpt2(d_model: int, layers: int, heads: int, **sizes) -> Spec:
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(("softmax", {"heads": heads, "bias": True}),),
        mlp=("gelu", {"ratio": 4, "bias": True}),
        norm="layer",
        positions="learned",
        tied=True,
        **sizes,
    )


def _bert(d_model: int, layers: int, heads: int, **sizes) -> Spec:
    norm = ("layer", {"eps": 1e-12})
    return _gpt2(d_model, layers, heads, **sizes).but(
        mlp=("gelu-exact", {"ratio": 4, "bias": True}),
        norm=norm,
        norm_at="post",
        norm_in=norm,
        norm_out="none",
        head=("masked", {"eps": 1e-12}),
        family="encoder",
        segments=2,
    )


def _t5(d_model: int, layers: int, heads: int, vocab_size: int) -> Spec:
    """T5 does not divide its scores by sqrt(K), nor skip a division by sqrt(D) before its tied
    head: the weights of queries and of the last norm hold the same numbers otherwise scaled.
    """
    attention = ("softmax", {"heads": heads})
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(attention,),
        mlp=("relu", {"ratio": 4}),
        norm=("rms", {"eps": 1e-6}),
        positions=("relative", {"heads": heads, "buckets": 32, "distance": 128}),
        vocab_size=vocab_size,
        tied=True,
        family="encoder-decoder",
        cross=attention,
    )


def _swa_mla(d_model: int, layers: int, heads: int, *, window=256, vocab_size=50_257, **sizes):
    """Two layers that look through a window with sinks, one that keeps latents of everything."""
    window = ("softmax", {"heads": heads, "window": window, "sinks": 4})
    widths = {"d_latent": 256, "d_nope": 128, "d_rope": 64, "d_value": 128} | sizes
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(window, window, ("latent", {"heads": heads, **widths, "norm": "layer"})),
        mlp=("swiglu", {"ratio": 4}),
        positions="rotary",
        vocab_size=vocab_size,
        tied=True,
    )


def _randygpt(d_model: int, layers: int, heads: int, context: int, vocab_size: int) -> Spec:
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(("softmax", {"heads": heads}),),
        mlp=_SQUARED_RELU,
        norm=("rms", {"eps": 1e-5, "elementwise_affine": False}),
        norm_out="none",
        positions="learned",
        context=context,
        vocab_size=vocab_size,
    )


def _local_code(vocab_size: int, context: int) -> Spec:
    return Spec(
        d_model=64,
        layers=2,
        mixers=(("softmax", {"heads": 2}),),
        mlp=("gelu", {"ratio": 4, "bias": True}),
        norm="layer",
        positions="learned",
        context=context,
        vocab_size=vocab_size,
    )


PRESETS = {
    # QLLK corrected: patches aligned by target, a local decoder, the cumulative sum as the global
    # mixer. Chosen by the race, see README.  1,298,944 parameters.
    "qllk-2": _qllk_2(128),
    # The same small enough for a lesson and for tests.  342,272 parameters.
    "qllk-2-nano": _qllk_2(64),
    # The control of every race: qllk-2 without its global path.
    "qllk-2-local": _qllk_2(128).but(patch=None),
    # The baseline, at the parameters of qllk-2.
    "gpt": _gpt(160, layers=4, heads=5),
    "gpt-nano": _gpt(64, layers=4, heads=2),
    # Radford 2019, table 2, the smallest; as openai/gpt-2 has it.  124,439,808 parameters.
    "gpt2": _gpt2(768, layers=12, heads=12, context=1024, vocab_size=50_257),
    "gpt2-nano": _gpt2(64, layers=4, heads=2, context=1024),
    # Devlin 2018, 1810.04805, section 3, base, with the head for masked bytes; as
    # google-research/bert has it.  109,514,298 parameters.
    "bert-base": _bert(768, layers=12, heads=12, context=512, vocab_size=30_522),
    # Bytes, and one more id for the hidden ones.
    "bert-nano": _bert(64, layers=4, heads=2, context=256, vocab_size=257),
    # Raffel 2019, 1910.10683, 3.1.1, base, with the vocabulary of the published weights; as
    # google-research/text-to-text-transfer-transformer has it.  222,903,552 parameters.
    "t5-base": _t5(768, layers=12, heads=12, vocab_size=32_128),
    # Bytes, one id to start with and a hundred sentinels.
    "t5-nano": _t5(64, layers=2, heads=2, vocab_size=357),
    # SWA-MLA, its README: sizes in words, "about 125M, 400M, 700M, 2B". Here its windows act.
    # 158,352,896 parameters by the text, 262,516,736 by the sizes that its code builds.
    "swa-mla-small": _swa_mla(768, layers=12, heads=12),
    "swa-mla-small-as-coded": _swa_mla(1024, layers=12, heads=16),
    # 982,981,632, 1,940,808,192 and 8,578,479,104 parameters.
    "swa-mla-base": _swa_mla(1536, layers=24, heads=16),
    "swa-mla-large": _swa_mla(2048, layers=28, heads=16),
    "swa-mla-xl": _swa_mla(4096, layers=32, heads=32),
    "swa-mla-nano": _swa_mla(
        *(64, 3, 2), window=64, vocab_size=256, d_latent=32, d_nope=16, d_rope=16, d_value=32
    ),
    # randyGPT 0.1 and 0.3, see `by_hand`; the vocabulary is that of their texts.  13,184 and
    # 811,776 parameters.
    "randygpt-0.1": _randygpt(32, layers=1, heads=4, context=8, vocab_size=10),
    "randygpt-0.3": _randygpt(128, layers=4, heads=8, context=64, vocab_size=67),
    "randygpt-nano": _randygpt(64, layers=4, heads=4, context=1024, vocab_size=256),
    # local-code-model, the run of its README: 136,832 parameters, where it says about 50 thousand.
    "local-code-model": _local_code(vocab_size=259, context=64),
    "local-code-model-nano": _local_code(vocab_size=256, context=1024),
}


def name_of(spec: Spec) -> str:
    """What a spec is called, if it is one of the presets, whatever its vocabulary."""
    for name, preset in PRESETS.items():
        if preset.but(vocab_size=spec.vocab_size) == spec:
            return name
    return "a spec of your own"


# Peaks for presets that the default, found for qllk-2, would throw out of step: Devlin 2018 for
# bert-base, Brown 2020 (GPT-3, at the size of gpt2) for gpt2, Raffel 2019 (the rate of its
# fine-tuning) for t5-base; bert-nano's was found by trying.
PEAK_LR = {"bert-nano": 1e-3, "bert-base": 1e-4, "gpt2": 6e-4, "t5-base": 1e-3}


def peak_lr(preset: str, default: float = 6e-3) -> float:
    """The peak learning rate that suits a preset; 6e-3 was found for qllk-2."""
    return PEAK_LR.get(preset, default)


def find_spec(what: str | Path | Spec) -> Spec:
    """The Spec of a preset's name, of the path of a Spec's JSON, or the Spec itself.

    Raises   ValueError when there is no such preset, or the file holds no Spec
             FileNotFoundError when there is no such file
    """
    if isinstance(what, Spec):
        return what
    if str(what).endswith(".json"):
        return Spec.from_json(Path(what).read_text(encoding="utf-8"))
    return look_up(PRESETS, what, "preset")
