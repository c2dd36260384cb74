"""GPT-2, BERT and T5 equal an independent implementation, Hugging Face transformers, in float64.

Random weights of theirs are copied into our model by a table of names. Logits have to be equal, and
so has the gradient of each weight of theirs, which our model computes through that same copying.
Nothing is downloaded.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import transformers
from helpers import same
from transformers.models.t5.modeling_t5 import T5Attention

from qllk.model.families import build
from qllk.model.positions import BidirectionalRelative, Relative
from qllk.presets import PRESETS
from qllk.spec import Spec

D, HEADS, LAYERS, VOCABULARY = 24, 3, 2, 50
K = D // HEADS


# Our module: theirs, one or several that we hold joined. # stands for the number of the layer.
GPT2 = {
    "embed": ["transformer.wte"],
    "positions.table": ["transformer.wpe"],
    "body.blocks.#.norm_mix": ["transformer.h.#.ln_1"],
    "body.blocks.#.mix.qkv": ["transformer.h.#.attn.c_attn"],
    "body.blocks.#.mix.out": ["transformer.h.#.attn.c_proj"],
    "body.blocks.#.norm_mlp": ["transformer.h.#.ln_2"],
    "body.blocks.#.mlp.up": ["transformer.h.#.mlp.c_fc"],
    "body.blocks.#.mlp.out": ["transformer.h.#.mlp.c_proj"],
    "norm": ["transformer.ln_f"],
}
BERT = {
    "embed": ["bert.embeddings.word_embeddings"],
    "encoder.positions.table": ["bert.embeddings.position_embeddings"],
    "segments": ["bert.embeddings.token_type_embeddings"],
    "encoder.norm_in": ["bert.embeddings.LayerNorm"],
    "encoder.body.blocks.#.mix.qkv": [
        f"bert.encoder.layer.#.attention.self.{name}" for name in ("query", "key", "value")
    ],
    "encoder.body.blocks.#.mix.out": ["bert.encoder.layer.#.attention.output.dense"],
    "encoder.body.blocks.#.norm_mix": ["bert.encoder.layer.#.attention.output.LayerNorm"],
    "encoder.body.blocks.#.mlp.up": ["bert.encoder.layer.#.intermediate.dense"],
    "encoder.body.blocks.#.mlp.out": ["bert.encoder.layer.#.output.dense"],
    "encoder.body.blocks.#.norm_mlp": ["bert.encoder.layer.#.output.LayerNorm"],
    "head.transform": ["cls.predictions.transform.dense"],
    "head.norm": ["cls.predictions.transform.LayerNorm"],
    "head": ["cls.predictions"],  # its bias; the weight is the embedding's
}


def t5_attention(name, letters):
    return [f"{name}.{letter}" for letter in letters]


def t5_layers(ours, theirs, mlp):
    """What the layers of both stacks have; `mlp` is the number of the sublayer."""
    layer = f"{theirs}.block.#.layer"
    return {
        f"{ours}.#.norm_mix": [f"{layer}.0.layer_norm"],
        f"{ours}.#.mix.qkv": t5_attention(f"{layer}.0.SelfAttention", "qkv"),
        f"{ours}.#.mix.out": t5_attention(f"{layer}.0.SelfAttention", "o"),
        f"{ours}.#.norm_mlp": [f"{layer}.{mlp}.layer_norm"],
        f"{ours}.#.mlp.up": [f"{layer}.{mlp}.DenseReluDense.wi"],
        f"{ours}.#.mlp.out": [f"{layer}.{mlp}.DenseReluDense.wo"],
    }


RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias"  # the first layer's serves all
T5 = {
    "embed": ["shared"],
    "encoder.positions.table": [f"encoder.{RELATIVE}"],
    **t5_layers("encoder.body.blocks", "encoder", mlp=1),
    "encoder.norm": ["encoder.final_layer_norm"],
    "positions.table": [f"decoder.{RELATIVE}"],
    **t5_layers("body.blocks", "decoder", mlp=2),
    "body.blocks.#.norm_cross": ["decoder.block.#.layer.1.layer_norm"],
    "body.blocks.#.cross.q": t5_attention("decoder.block.#.layer.1.EncDecAttention", "q"),
    "body.blocks.#.cross.kv": t5_attention("decoder.block.#.layer.1.EncDecAttention", "kv"),
    "body.blocks.#.cross.out": t5_attention("decoder.block.#.layer.1.EncDecAttention", "o"),
    "norm": ["decoder.final_layer_norm"],
}


def gpt2_turns(name, weight):
    """Theirs multiplies by the matrix from the other side."""
    return weight.mT if re.search(r"c_\w+\.weight", name) else weight


def as_it_is(name, weight):
    return weight


def t5_scales(name, weight):
    """Theirs leaves scores as they are, which we divide by sqrt(K), and divides before the head."""
    if name.endswith("Attention.q.weight"):
        return weight * K**0.5
    return weight * D**-0.5 if name == "decoder.final_layer_norm.weight" else weight


def ids(T):
    return torch.randint(1, VOCABULARY, (2, T))  # 0 is BERT's padding, which it does not train


def segments(T):
    return torch.randint(2, (2, T))


def text(T):
    """The second row is padded by a third."""
    return torch.arange(T) < torch.tensor([[T], [T - T // 3]])


def everything(*inputs):
    return torch.ones(())


def where_text(*inputs):
    """The mask, which is the last input: what a model says of padding is its own affair."""
    return inputs[-1][..., None]


class Rival(NamedTuple):
    """Their model, our spec, how weights go from one to the other, and what both are given."""

    theirs: Callable
    spec: Spec
    names: dict[str, list[str]]
    change: Callable
    inputs: Callable[[], tuple]  # in the order of our model
    keywords: tuple[str, ...]  # theirs, for the same
    counts: Callable = everything  # which logits have to be equal


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=D,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * D,
    )
    return transformers.BertForMaskedLM(config)


def t5():
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=D, num_layers=LAYERS, num_heads=HEADS, d_kv=K, d_ff=4 * D
    )
    return transformers.T5ForConditionalGeneration(config)


def narrow(part):
    """The part with the number of heads of this file."""
    name, options = part
    return name, options | {"heads": HEADS}


def small(name, **fields):
    spec = PRESETS[name]
    return spec.but(
        d_model=D,
        layers=LAYERS,
        mixers=tuple(map(narrow, spec.mixers)),
        vocab_size=VOCABULARY,
        **fields,
    )


RIVALS = {
    "GPT-2": Rival(
        gpt2, small("gpt2", context=32), GPT2, gpt2_turns, lambda: (ids(32),), ("input_ids",)
    ),
    "BERT": Rival(
        bert,
        small("bert-base", context=32),
        BERT,
        as_it_is,
        lambda: (ids(29), segments(29)),
        ("input_ids", "token_type_ids"),
    ),
    "T5": Rival(  # long enough for every bucket of distances
        t5,
        small(
            "t5-base",
            cross=narrow(PRESETS["t5-base"].cross),
            positions=narrow(PRESETS["t5-base"].positions),
        ),
        T5,
        t5_scales,
        lambda: (ids(150), ids(140)),
        ("input_ids", "decoder_input_ids"),
    ),
}

RIVALS["BERT, padded"] = RIVALS["BERT"]._replace(
    inputs=lambda: (ids(29), segments(29), text(29)),
    keywords=("input_ids", "token_type_ids", "attention_mask"),
    counts=where_text,
)
RIVALS["T5, padded"] = RIVALS["T5"]._replace(
    inputs=lambda: (ids(150), ids(40), text(150)),
    keywords=("input_ids", "decoder_input_ids", "attention_mask"),
)


@pytest.fixture(params=RIVALS.values(), ids=RIVALS)
def rival(request, monkeypatch):
    # T5 computes its norms in float32 at least; here that least is float64.
    monkeypatch.setattr(torch, "float32", torch.float64)
    return request.param


def weights_of(model):
    """Every weight, moved a little from its start, where biases are all 0 and norms all 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return dict(model.named_parameters())


def copied(rival, theirs):
    """Our weights, made of theirs; every one of theirs is used."""
    unused, ours = set(theirs), {}
    for name, sources in rival.names.items():
        for layer in range(LAYERS if "#" in name else 1):
            for kind in ("weight", "bias"):
                wanted = [f"{source}.{kind}".replace("#", str(layer)) for source in sources]
                if wanted[0] in theirs:
                    parts = [rival.change(source, theirs[source]) for source in wanted]
                    ours[f"{name}.{kind}".replace("#", str(layer))] = torch.cat(parts)
                    unused -= set(wanted)
    assert not unused
    return ours


def weighed(logits):
    weigh = torch.Generator().manual_seed(1)
    return (logits * torch.randn(logits.shape, generator=weigh, dtype=logits.dtype)).sum()


def test_logits_and_gradients_equal_those_of_transformers(rival):
    theirs, ours = rival.theirs().double().eval(), build(rival.spec).double()
    weights, inputs = weights_of(theirs), rival.inputs()
    counts = rival.counts(*inputs)
    expected = theirs(**dict(zip(rival.keywords, inputs, strict=True))).logits * counts
    found = torch.func.functional_call(ours, copied(rival, weights), inputs, strict=True) * counts
    same(found, expected)
    for name, gradient, wanted in zip(
        weights,
        torch.autograd.grad(weighed(found), weights.values()),
        torch.autograd.grad(weighed(expected), weights.values()),
        strict=True,
    ):
        assert wanted.any(), name
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", [Relative, BidirectionalRelative])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (16, 50), (10, 33)])
def test_relative_buckets_are_those_of_transformers(kind, buckets, distance):
    ahead = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(
        ahead, kind is BidirectionalRelative, buckets, distance
    )
    relative = kind(D, heads=HEADS, buckets=buckets, distance=distance)
    same(relative.bucket(ahead, buckets), expected, atol=0)
