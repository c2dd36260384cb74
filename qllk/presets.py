"""The models of the course and the systems that they come from, as rows of data. Imports no torch.

`PRESETS[name]` is a `Spec`; `recipe_of(name)` are the fields of a `Recipe` that suit it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .checks import look_up
from .files import user_path
from .spec import Ngrams, Part, Patch, Recall, Spec

_MOST_LETTERS = 1 << 20  # of a Spec's file; a Spec has about a thousand
CONV = ("conv", {"width": 8})
# Half-lives from one patch to 256 patches: 8 to 2,048 bytes.
FADING_SUM = ("cumsum", {"normaliser": "rms", "half_lives": [1, 256]})
_SQUARED_RELU = ("relu2", {"ratio": 4})


def _qllk_2(d_model: int) -> Spec:
    """One byte layer, the cumulative sum over patches of 8 bytes, two byte layers on both added."""
    return Spec(
        d_model=d_model,
        layers=3,
        mixers=(CONV,),
        mlp=_SQUARED_RELU,
        patch=Patch(size=8, d_model=d_model, layers=2, mixers=(FADING_SUM,), after=2),
    )


def _qllk_3(d_model: int, layers: int, ratio: int, rows: int, addresses: int) -> Spec:
    """Byte layers on hashed n-grams and a memory with addresses."""
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(CONV,),
        mlp=("relu2", {"ratio": ratio}),
        ngrams=Ngrams((2, 3, 4, 5, 6, 8, "word", "words-2"), rows=rows),
        recall=Recall(
            (3, 4, 5, 6, 8, 12, 20, "word", "words-2", "words-3"),
            addresses=addresses,
            rows=4096,
        ),
    )


def _gpt(d_model: int, layers: int, heads: int) -> Spec:
    """Causal softmax attention with rotary positions; everything else as in qllk-2."""
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(("softmax", {"heads": heads}),),
        mlp=_SQUARED_RELU,
        positions="rotary",
    )


def _rival(mixer: Part, **changes) -> Spec:
    return _gpt(64, layers=4, heads=2).but(mixers=(mixer,), positions="none", **changes)


def _rwkv(time: Part, channel: Part) -> Spec:
    """Four layers of time mixing and channel mixing in turn, each a block of its own."""
    return _rival(time, layers=8, mlp=("none", {})).but(mixers=(time, channel))


def _gpt2(d_model: int, layers: int, heads: int, context: int, vocab_size: int = 256) -> Spec:
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(("softmax", {"heads": heads, "bias": True}),),
        mlp=("gelu", {"ratio": 4, "bias": True}),
        norm="layer",
        positions="learned",
        context=context,
        vocab_size=vocab_size,
        tied=True,
    )


def _bert(d_model: int, layers: int, heads: int, context: int, vocab_size: int) -> Spec:
    norm = ("layer", {"eps": 1e-12})
    return _gpt2(d_model, layers, heads, context, vocab_size).but(
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
    """T5 leaves out two factors that we apply: 1/sqrt(K) on the scores and, with a tied head,
    sqrt(D) on its input. The weights of the queries and of the last norm absorb them.
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


def _swa_mla(
    d_model: int, layers: int, heads: int, vocab_size: int, window: int, latent: dict[str, int]
) -> Spec:
    """Two layers of windowed attention with sinks, then one of latent attention over everything."""
    windowed = ("softmax", {"heads": heads, "window": window, "sinks": 4})
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(windowed, windowed, ("latent", {"heads": heads, **latent, "norm": "layer"})),
        mlp=("swiglu", {"ratio": 4}),
        positions="rotary",
        vocab_size=vocab_size,
        tied=True,
    )


def _published_swa_mla(d_model: int, layers: int, heads: int) -> Spec:
    latent = {"d_latent": 256, "d_nope": 128, "d_rope": 64, "d_value": 128}
    return _swa_mla(d_model, layers, heads, vocab_size=50_257, window=256, latent=latent)


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


class _Row(NamedTuple):
    """A model, with the peak learning rate and the size of a step at which it learns best."""

    spec: Spec
    lr: float = 6e-3  # the defaults were found for qllk-2
    batch: int = 4
    window: int = 1024
    carry: int = 1


_ROWS = {
    # QLLK corrected: patches aligned by target, a local decoder, the cumulative sum as the global
    # mixer. Chosen by the race, see RESULTS.md.  1,298,944 parameters.
    "qllk-2": _Row(_qllk_2(128)),
    # The same, small enough for lessons and tests.  342,272 parameters.
    "qllk-2-nano": _Row(_qllk_2(64)),
    # The control of qllk-2: the same without its global path.
    "qllk-2-local": _Row(_qllk_2(128).but(patch=None)),
    # A memory with addresses: hashed n-grams, and recall of what followed each context.
    # 38,890,048 parameters, all but 92,736 of them rows of tables.
    "qllk-3": _Row(
        _qllk_3(64, layers=2, ratio=2, rows=65_536, addresses=65_536), 8e-3, 1, 2048, carry=64
    ),
    "qllk-3-nano": _Row(
        _qllk_3(32, layers=2, ratio=2, rows=4_096, addresses=4_096), 8e-3, 1, 2048, carry=64
    ),
    # The baseline, with as many parameters as qllk-2.
    "gpt": _Row(_gpt(160, layers=4, heads=5)),
    "gpt-nano": _Row(_gpt(64, layers=4, heads=2)),
    # Radford 2019, table 2, the smallest; as in openai/gpt-2.  124,439,808 parameters. Learning
    # rate: Brown 2020 (GPT-3), 2005.14165, table 2.1, for this size.
    "gpt2": _Row(_gpt2(768, layers=12, heads=12, context=1024, vocab_size=50_257), lr=6e-4),
    "gpt2-nano": _Row(_gpt2(64, layers=4, heads=2, context=1024)),
    # Devlin 2018, 1810.04805, section 3, base, with the masked-language-model head; as in
    # google-research/bert.  109,514,298 parameters. Learning rate: A.2.
    "bert-base": _Row(_bert(768, layers=12, heads=12, context=512, vocab_size=30_522), lr=1e-4),
    # Bytes and the id of the mask. Learning rate: found by trying; 6e-3 is too high.
    "bert-nano": _Row(_bert(64, layers=4, heads=2, context=256, vocab_size=257), lr=1e-3),
    # Raffel 2019, 1910.10683, 3.1.1, base, with the vocabulary of the published weights; as in
    # google-research/text-to-text-transfer-transformer.  222,903,552 parameters. Learning rate:
    # that of its fine-tuning.
    "t5-base": _Row(_t5(768, layers=12, heads=12, vocab_size=32_128), lr=1e-3),
    # Bytes, a start id and a hundred sentinels.
    "t5-nano": _Row(_t5(64, layers=2, heads=2, vocab_size=357)),
    # SWA-MLA. Its README gives the sizes as "about 125M, 400M, 700M, 2B". Unlike there, the windows
    # take effect.  158,352,896 parameters by the README's sizes, 262,516,736 by its code's.
    "swa-mla-small": _Row(_published_swa_mla(768, layers=12, heads=12)),
    "swa-mla-small-as-coded": _Row(_published_swa_mla(1024, layers=12, heads=16)),
    # 982,981,632, 1,940,808,192 and 8,578,479,104 parameters.
    "swa-mla-base": _Row(_published_swa_mla(1536, layers=24, heads=16)),
    "swa-mla-large": _Row(_published_swa_mla(2048, layers=28, heads=16)),
    "swa-mla-xl": _Row(_published_swa_mla(4096, layers=32, heads=32)),
    "swa-mla-nano": _Row(
        _swa_mla(
            d_model=64,
            layers=3,
            heads=2,
            vocab_size=256,
            window=64,
            latent={"d_latent": 32, "d_nope": 16, "d_rope": 16, "d_value": 32},
        )
    ),
    # randyGPT 0.1 and 0.3, see study.by_hand, with the vocabularies of their texts.  13,184 and
    # 811,776 parameters.
    "randygpt-0.1": _Row(_randygpt(32, layers=1, heads=4, context=8, vocab_size=10)),
    "randygpt-0.3": _Row(_randygpt(128, layers=4, heads=8, context=64, vocab_size=67)),
    "randygpt-nano": _Row(_randygpt(64, layers=4, heads=4, context=1024, vocab_size=256)),
    # local-code-model, as run in its README: 136,832 parameters, stated there as about 50 thousand.
    "local-code-model": _Row(_local_code(vocab_size=259, context=64)),
    "local-code-model-nano": _Row(_local_code(vocab_size=256, context=1024)),
    # RWKV-4, Peng 2023, 2305.13048, as deep and wide as gpt-nano. A ratio of 3.5 instead of 4 makes
    # up for the gate of its channel mixing.  231,744 parameters.
    "rwkv4-nano": _Row(_rwkv(("rwkv4", {}), ("rwkv4-channel", {"ratio": 3.5}))),
    # RWKV-7, Peng 2025, 2503.14456, without its value residual.  258,112 parameters.
    "rwkv7-nano": _Row(_rwkv(("rwkv7", {"heads": 2, "rank": 16}), ("rwkv7-channel", {"ratio": 4}))),
    # The models of the field, each as wide and about as large as gpt-nano. Katharopoulos 2020,
    # 2006.16236, with sinusoidal positions as there.
    "linear-2020-nano": _Row(_rival(("linear-2020", {"heads": 2})).but(positions="sinusoidal")),
    # RetNet, Sun 2023, 2307.08621: wide values make up for a narrow MLP.
    "retnet-nano": _Row(_rival(("retention", {"heads": 2}), mlp=("relu2", {"ratio": 2}))),
    # Feng 2024, 2410.01201, without its convolution.
    "mingru-nano": _Row(_rival(("mingru", {"expand": 1.5}))),
    "minlstm-nano": _Row(_rival(("minlstm", {}))),
    # Mamba, Gu 2023, 2312.00752, and Mamba-2, Dao 2024, 2405.21060, of blocks without an MLP and
    # with fewer numbers per channel than the published 16 and 64.
    "mamba-nano": _Row(_rival(("mamba", {"states": 8}), layers=7, mlp=("none", {}))),
    "mamba2-nano": _Row(_rival(("mamba2", {"heads": 4, "states": 32}), layers=7, mlp=("none", {}))),
    # Wang 2020, 2006.04768, by blocks, so that it does not leak.
    "linformer-nano": _Row(
        _rival(("linformer", {"heads": 2, "block": 64, "slots": 8})).but(positions="rotary")
    ),
    # Gated DeltaNet, Yang 2024, 2412.06464, without its convolution.
    "delta-nano": _Row(_rival(("delta", {"heads": 2, "decay": "head"}))),
    # Grouped-query attention, Ainslie 2023, 2305.13245: one head of keys for all queries.
    "gqa-nano": _Row(_rival(("softmax", {"heads": 2, "kv_heads": 1})).but(positions="rotary")),
}
PRESETS = {name: row.spec for name, row in _ROWS.items()}


def recipe_of(preset: str) -> dict[str, float | int]:
    """The fields of a `Recipe` that suit a preset, or for any other name those of qllk-2."""
    _, *fields = _ROWS.get(preset, _ROWS["qllk-2"])
    return dict(zip(_Row._fields[1:], fields, strict=True))


def name_of(spec: Spec) -> str:
    """The name of the preset that a spec equals, apart from the size of the vocabulary."""
    for name, preset in PRESETS.items():
        if preset.but(vocab_size=spec.vocab_size) == spec:
            return name
    return "a spec of your own"


def find_spec(what: str | Path | Spec) -> Spec:
    """The Spec of a preset by name, the Spec in a JSON file by path, or the Spec itself.

    Raises   ValueError when there is no such preset, or the file does not contain a Spec
             FileNotFoundError when there is no such file
    """
    if isinstance(what, Spec):
        return what
    if str(what).endswith(".json"):
        path = user_path(what)
        if not path.is_file():
            raise FileNotFoundError(f"no file {str(path)!r} with a Spec")
        try:
            with open(path, encoding="utf-8") as file:
                return Spec.from_json(file.read(_MOST_LETTERS))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no Spec in {str(path)!r}: {error}") from None
    return look_up(PRESETS, what, "preset")
