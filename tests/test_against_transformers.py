"""GPT-2, BERT and T5 equal an independent implementation, Hugging Face transformers, in float64.

Random weights of theirs become ours as in `load_hf`. Logits have to be equal, and
so has the gradient of each weight of theirs, which our model computes through that same copying.
Nothing is downloaded.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import transformers
from helpers import same
from transformers.models.t5.modeling_t5 import T5Attention

from qllk.model import pretrained
from qllk.model.families import build
from qllk.model.positions import BidirectionalRelative, Relative
from qllk.presets import PRESETS
from qllk.spec import Spec

D, HEADS, LAYERS, VOCABULARY = 24, 3, 2, 50
K = D // HEADS


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
    """The mask, which alone is bool: what a model says of padding is its own affair."""
    (text,) = (given for given in inputs if given.dtype == torch.bool)
    return text[..., None]


class Rival(NamedTuple):
    """Their model, our spec, which names its weights have, and what both are given."""

    theirs: Callable
    spec: Spec
    kind: str  # a row of `pretrained._KINDS`
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
    "GPT-2": Rival(gpt2, small("gpt2", context=32), "gpt2", lambda: (ids(32),), ("input_ids",)),
    "BERT": Rival(
        bert,
        small("bert-base", context=32),
        "bert",
        lambda: (ids(29), torch.ones_like(ids(29)).bool(), segments(29)),
        ("input_ids", "attention_mask", "token_type_ids"),
    ),
    "T5": Rival(  # long enough for every bucket of distances
        t5,
        small(
            "t5-base",
            cross=narrow(PRESETS["t5-base"].cross),
            positions=narrow(PRESETS["t5-base"].positions),
        ),
        "t5",
        lambda: (ids(150), ids(140)),
        ("input_ids", "decoder_input_ids"),
    ),
}

RIVALS["BERT, padded"] = RIVALS["BERT"]._replace(
    inputs=lambda: (ids(29), text(29), segments(29)),
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


def weighed(logits):
    weigh = torch.Generator().manual_seed(1)
    return (logits * torch.randn(logits.shape, generator=weigh, dtype=logits.dtype)).sum()


def test_logits_and_gradients_equal_those_of_transformers(rival):
    theirs, ours = rival.theirs().double().eval(), build(rival.spec).double()
    weights, inputs = weights_of(theirs), rival.inputs()
    counts = rival.counts(*inputs)
    copied = pretrained._rename(pretrained._KINDS[rival.kind], rival.spec, weights)
    expected = theirs(**dict(zip(rival.keywords, inputs, strict=True))).logits * counts
    found = torch.func.functional_call(ours, copied, inputs, strict=True) * counts
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


# ---------------------------------------------------------------- Llama, whose keys are shared


def llama():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * D,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


LLAMA = Spec(
    d_model=D,
    layers=LAYERS,
    mixers=(("softmax", {"heads": 4, "kv_heads": 2}),),
    mlp=("swiglu", {"ratio": 2}),
    norm=("rms", {"eps": 1e-6}),
    positions="rotary",
    vocab_size=VOCABULARY,
)


def of_llama(weights):
    """Their weights as ours: three projections fused to one, and two."""
    names = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
    copied = {f"{ours}.weight": weights[f"{theirs}.weight"] for theirs, ours in names.items()}
    for i in range(LAYERS):

        def part(name, i=i):
            return weights[f"model.layers.{i}.{name}.weight"]

        copied |= {
            f"body.blocks.{i}.{ours}.weight": torch.cat([part(name) for name in theirs])
            for ours, theirs in {
                "norm_mix": ["input_layernorm"],
                "mix.qkv": [f"self_attn.{x}_proj" for x in "qkv"],
                "mix.out": ["self_attn.o_proj"],
                "norm_mlp": ["post_attention_layernorm"],
                "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
                "mlp.out": ["mlp.down_proj"],
            }.items()
        }
    return copied


def test_shared_keys_give_the_logits_and_gradients_of_llama():
    theirs, ours, read = llama().double().eval(), build(LLAMA).double(), ids(31)
    weights = dict(theirs.named_parameters())
    found = torch.func.functional_call(ours, of_llama(weights), (read,), strict=True)
    expected = theirs(read, use_cache=False).logits
    same(found, expected, atol=1e-6)  # their angles are in float32
    pairs = (
        torch.autograd.grad(logits.square().sum(), weights.values()) for logits in (found, expected)
    )
    for name, one, other in zip(weights, *pairs, strict=True):
        assert other.any(), name
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)
