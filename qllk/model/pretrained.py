"""Published weights of GPT-2, BERT and T5, from a folder as Hugging Face transformers writes it.

    model = load_hf("gpt2/")        logits = model(ids)

The folder holds `config.json` and the weights in one or several safetensors files. Nothing is
downloaded, and no code of the folder runs. A row of _KINDS says what differs between the three: how
the configuration becomes a Spec, the names of the weights, and what is multiplied into them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checks import look_up
from ..presets import PRESETS
from ..spec import Spec
from .families import build

# Names: our module -> theirs, one or several that we hold joined; # is the number of the layer.
_GPT2 = {
    "embed": ["wte"],
    "positions.table": ["wpe"],
    "body.blocks.#.norm_mix": ["h.#.ln_1"],
    "body.blocks.#.mix.qkv": ["h.#.attn.c_attn"],
    "body.blocks.#.mix.out": ["h.#.attn.c_proj"],
    "body.blocks.#.norm_mlp": ["h.#.ln_2"],
    "body.blocks.#.mlp.up": ["h.#.mlp.c_fc"],
    "body.blocks.#.mlp.out": ["h.#.mlp.c_proj"],
    "norm": ["ln_f"],
}
_BERT_LAYER = "bert.encoder.layer.#"
_BERT = {
    "embed": ["bert.embeddings.word_embeddings"],
    "encoder.positions.table": ["bert.embeddings.position_embeddings"],
    "segments": ["bert.embeddings.token_type_embeddings"],
    "encoder.norm_in": ["bert.embeddings.LayerNorm"],
    "encoder.body.blocks.#.mix.qkv": [
        f"{_BERT_LAYER}.attention.self.{name}" for name in ("query", "key", "value")
    ],
    "encoder.body.blocks.#.mix.out": [f"{_BERT_LAYER}.attention.output.dense"],
    "encoder.body.blocks.#.norm_mix": [f"{_BERT_LAYER}.attention.output.LayerNorm"],
    "encoder.body.blocks.#.mlp.up": [f"{_BERT_LAYER}.intermediate.dense"],
    "encoder.body.blocks.#.mlp.out": [f"{_BERT_LAYER}.output.dense"],
    "encoder.body.blocks.#.norm_mlp": [f"{_BERT_LAYER}.output.LayerNorm"],
    "head.transform": ["cls.predictions.transform.dense"],
    "head.norm": ["cls.predictions.transform.LayerNorm"],
    "head": ["cls.predictions"],  # its bias; the weight is that of the embedding
}


def _t5_layers(ours: str, theirs: str, mlp: int) -> dict[str, list[str]]:
    """The layers of an encoder or a decoder, of which `mlp` is the last sublayer."""
    layer = f"{theirs}.block.#.layer"
    return {
        f"{ours}.#.norm_mix": [f"{layer}.0.layer_norm"],
        f"{ours}.#.mix.qkv": [f"{layer}.0.SelfAttention.{name}" for name in "qkv"],
        f"{ours}.#.mix.out": [f"{layer}.0.SelfAttention.o"],
        f"{ours}.#.norm_mlp": [f"{layer}.{mlp}.layer_norm"],
        f"{ours}.#.mlp.up": [f"{layer}.{mlp}.DenseReluDense.wi"],
        f"{ours}.#.mlp.out": [f"{layer}.{mlp}.DenseReluDense.wo"],
    }


# The relative positions of the first layer serve all layers.
_RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias"
_CROSS = "decoder.block.#.layer.1"
_T5 = {
    "embed": ["shared"],
    "encoder.positions.table": [f"encoder.{_RELATIVE}"],
    **_t5_layers("encoder.body.blocks", "encoder", mlp=1),
    "encoder.norm": ["encoder.final_layer_norm"],
    "positions.table": [f"decoder.{_RELATIVE}"],
    **_t5_layers("body.blocks", "decoder", mlp=2),
    "body.blocks.#.norm_cross": [f"{_CROSS}.layer_norm"],
    "body.blocks.#.cross.q": [f"{_CROSS}.EncDecAttention.q"],
    "body.blocks.#.cross.kv": [f"{_CROSS}.EncDecAttention.{name}" for name in "kv"],
    "body.blocks.#.cross.out": [f"{_CROSS}.EncDecAttention.o"],
    "norm": ["decoder.final_layer_norm"],
}


def _gpt2_spec(config):
    attention = {"heads": config["n_head"], "bias": True}
    width = config["n_embd"]
    return PRESETS["gpt2"].but(
        d_model=width,
        layers=config["n_layer"],
        mixers=(("softmax", attention),),
        mlp=("gelu", {"ratio": (config["n_inner"] or 4 * width) / width, "bias": True}),
        norm=("layer", {"eps": config["layer_norm_epsilon"]}),
        context=config["n_positions"],
        vocab_size=config["vocab_size"],
    )


def _bert_spec(config):
    width, norm = config["hidden_size"], ("layer", {"eps": config["layer_norm_eps"]})
    return PRESETS["bert-base"].but(
        d_model=width,
        layers=config["num_hidden_layers"],
        mixers=(("softmax", {"heads": config["num_attention_heads"], "bias": True}),),
        mlp=("gelu-exact", {"ratio": config["intermediate_size"] / width, "bias": True}),
        norm=norm,
        norm_in=norm,
        head=("masked", {"eps": config["layer_norm_eps"]}),
        context=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        segments=config["type_vocab_size"],
    )


def _t5_spec(config):
    width, heads = config["d_model"], config["num_heads"]
    if config["d_kv"] * heads != width:
        raise ValueError(
            f"its heads are {heads} times {config['d_kv']} wide, which must make d_model={width}"
        )
    attention = ("softmax", {"heads": heads})
    buckets, distance = (
        config[f"relative_attention_{name}"] for name in ("num_buckets", "max_distance")
    )
    return PRESETS["t5-base"].but(
        d_model=width,
        layers=config["num_layers"],
        mixers=(attention,),
        cross=attention,
        mlp=("relu", {"ratio": config["d_ff"] / width}),
        norm=("rms", {"eps": config["layer_norm_epsilon"]}),
        positions=("relative", {"heads": heads, "buckets": buckets, "distance": distance}),
        vocab_size=config["vocab_size"],
    )


def _gpt2_scale(name, weight, spec):
    """GPT-2 multiplies by its matrices from the other side."""
    return weight.mT if re.search(r"c_\w+\.weight", name) else weight


def _unscaled(name, weight, spec):
    return weight


def _t5_scale(name, weight, spec):
    """T5 leaves scores as they are, which we divide by sqrt(K), and divides before the head."""
    if name.endswith("Attention.q.weight"):
        return weight * (spec.d_model // spec.mixers[0][1]["heads"]) ** 0.5
    return weight * spec.d_model**-0.5 if name == "decoder.final_layer_norm.weight" else weight


class _Kind(NamedTuple):
    """How the weights of one kind of model become ours."""

    defaults: dict[str, Any]  # of the configuration; a file may leave them out
    required: dict[str, Any]  # what we compute: with any other value, logits would differ
    spec: Callable[[dict], Spec]
    names: dict[str, list[str]]
    scale: Callable[[str, Tensor, Spec], Tensor]
    unused: str  # pattern of weights without a use here: tied copies, buffers, other heads


_KINDS = {
    "gpt2": _Kind(
        {"n_inner": None, "layer_norm_epsilon": 1e-5},
        {
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "tie_word_embeddings": True,
        },
        _gpt2_spec,
        _GPT2,
        _gpt2_scale,
        r"lm_head\.weight|h\.\d+\.attn\.(masked_)?bias",
    ),
    "bert": _Kind(
        {"layer_norm_eps": 1e-12, "type_vocab_size": 2},
        {
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "tie_word_embeddings": True,
        },
        _bert_spec,
        _BERT,
        _unscaled,
        r"cls\.predictions\.decoder\..*|cls\.seq_relationship\..*|bert\.pooler\..*|"
        r"bert\.embeddings\.position_ids",
    ),
    "t5": _Kind(
        {
            "layer_norm_epsilon": 1e-6,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
        },
        {"feed_forward_proj": "relu", "tie_word_embeddings": True},
        _t5_spec,
        _T5,
        _t5_scale,
        r"(encoder|decoder)\.embed_tokens\.weight|lm_head\.weight|"
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
}


def load_hf(folder: str | Path) -> nn.Module:
    """The model of a folder of published weights, as one of ours, in float32.

    Raises   FileNotFoundError when the folder lacks its configuration or its weights
             ValueError when it is neither GPT-2 nor BERT nor T5, computes something that ours does
             not, or its weights are damaged, missing or not used
    """
    folder = Path(folder).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json must hold a JSON object")
        kind = look_up(_KINDS, config.get("model_type"), "kind of model")
        theirs = _read_weights(folder)
        spec = _read_spec(kind, config)
        ours = _rename(kind, spec, theirs)
        with torch.device("meta"):  # takes no memory, whatever sizes the configuration has
            _check_shapes(ours, build(spec).state_dict())
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{str(folder)!r} can't be loaded: {error}") from None
    model = build(spec, seed=0)
    model.load_state_dict(ours)
    return model


def _read_spec(kind: _Kind, config: dict) -> Spec:
    """The Spec of a configuration.

    Raises   ValueError when it lacks a value, or asks for something that ours does not compute
    """
    for name, value in kind.required.items():
        if config.get(name, value) != value:
            raise ValueError(f"its {name} must be {value!r}, got {config[name]!r}")
    try:
        return kind.spec(kind.defaults | config)
    except KeyError as error:
        raise ValueError(f"config.json has no {error}") from None
    except TypeError as error:
        raise ValueError(f"config.json has a value of the wrong type: {error}") from None


def _check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if missing := expected.keys() - found.keys():
        raise ValueError(f"the weights of our {min(missing)!r} are missing")
    if unknown := found.keys() - expected.keys():
        raise ValueError(f"it has weights of {min(unknown)!r}, which our model has not")
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise ValueError(
                f"the weights of our {name!r} have the shape {tuple(value.shape)}, but its "
                f"config.json asks for {tuple(expected[name].shape)}"
            )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of all safetensors files of a folder, in float32, with names of today."""
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise FileNotFoundError(
            f"{str(folder)!r} has no *.safetensors file; transformers writes one with "
            "model.save_pretrained(folder)"
        )
    found = {name: value for file in files for name, value in load_file(file).items()}
    old = {"gamma": "weight", "beta": "bias"}  # of norms, in BERT's published files
    return {
        re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda at: old[at[0]], name): value.float()
        for name, value in found.items()
    }


def _rename(kind: _Kind, spec: Spec, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights, made of theirs.

    Raises   ValueError when one of theirs has no use here, or is missing
    """
    theirs = {name.removeprefix("transformer."): value for name, value in theirs.items()}
    unused = {name for name in theirs if not re.fullmatch(kind.unused, name)}
    ours = {}
    for name, sources in kind.names.items():
        for layer in range(spec.layers if "#" in name else 1):
            for end in ("weight", "bias"):
                wanted = [f"{source}.{end}".replace("#", str(layer)) for source in sources]
                found = {source: theirs[source] for source in wanted if source in theirs}
                if len(found) == len(wanted):
                    parts = [kind.scale(source, value, spec) for source, value in found.items()]
                    ours[f"{name}.{end}".replace("#", str(layer))] = torch.cat(parts)
                    unused -= found.keys()
    if unused:
        raise ValueError(f"it has the weight {min(unused)!r}, which has no use here")
    if spec.tied:
        ours["head.weight"] = ours["embed.weight"]
    return ours
