"""Linformer as published leaks where it is masked, and by blocks it does not."""

import pytest
import torch
from helpers import same, vectors

from qllk.model.families import build
from qllk.model.linformer import BidirectionalLinformer, Linformer, block_attention
from qllk.spec import Spec

ENCODER = Spec(
    d_model=8,
    layers=2,
    mixers=(("linformer", {"heads": 2, "context": 12, "slots": 3}),),
    family="encoder",
    vocab_size=257,
)


def test_the_published_layer_equals_its_formula():
    mixer, x = BidirectionalLinformer(6, heads=2, context=9, slots=4).double(), vectors(2, 7, 6)
    q, k, v = (part.view(2, 7, 2, 3).transpose(1, 2) for part in mixer.qkv(x).chunk(3, dim=-1))
    heads = []
    for h in range(2):
        keys, values = mixer.to_k[:, :7] @ k[:, h], mixer.to_v[:, :7] @ v[:, h]  # (B,slots,K)
        scores = torch.einsum("btk,bsk->bts", q[:, h], keys) / 3**0.5
        shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(torch.einsum("bts,bsk->btk", shares, values))
    expected = mixer.out(torch.cat(heads, dim=-1))
    found = mixer(x)[0]
    same(found, expected)
    weigh = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    gradients = (
        torch.autograd.grad((y * weigh).sum(), list(mixer.parameters()), allow_unused=True)
        for y in (found, expected)
    )
    for one, other in zip(*gradients, strict=True):
        same(one, other, atol=1e-9)


def depends_on(call, x, at):
    """Which outputs change with the input at one position: (T,) bool."""
    changed = x.clone()
    changed[:, at] += 1
    return ((call(changed) - call(x)).abs().amax(dim=(0, 2)) > 1e-9).tolist()


def test_a_mask_over_published_summaries_does_not_hide_the_future():
    """The first summary is visible to every position, and it contains the last key."""
    mixer, x = BidirectionalLinformer(6, heads=2, context=8, slots=8).double(), vectors(1, 8, 6)
    with torch.no_grad():
        for weights in (mixer.to_k, mixer.to_v):
            weights.normal_()

        def masked(x):
            q, k, v, _ = mixer.project_qkv(x)
            seen = torch.ones(8, 8, dtype=torch.bool).tril()
            scores = (q @ k.transpose(2, 3)).masked_fill(~seen, float("-inf"))
            return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

        assert all(depends_on(masked, x, at=7))
        ours = Linformer(6, heads=2, block=3, slots=2).double()
        assert depends_on(lambda x: ours(x)[0], x, at=7) == [False] * 7 + [True]


def test_blocks_with_a_slot_for_each_key_are_softmax_attention():
    q, k, v = (vectors(2, 2, 10, 3) for _ in range(3))
    eye = torch.eye(4, dtype=torch.float64)
    o, *_ = block_attention(q, k, v, eye, eye)
    seen = torch.ones(10, 10, dtype=torch.bool).tril()
    scores = (q @ k.transpose(2, 3) / 3**0.5).masked_fill(~seen, float("-inf"))
    same(o, scores.softmax(-1) @ v)


def test_an_encoder_can_use_the_published_layer_up_to_its_context():
    model, ids = build(ENCODER, seed=0), torch.randint(256, (2, 12))
    assert model(ids).shape == (2, 12, 257)
    with pytest.raises(ValueError, match="sums up texts of at most 12 ids, got 13"):
        model(torch.randint(256, (1, 13)))
    with pytest.raises(ValueError, match="cannot be masked"):
        model(ids, ids)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="slots must be a whole number above 0, got 0"):
        Linformer(8, heads=2, block=4, slots=0)
    with pytest.raises(ValueError, match="context must be a whole number above 0, got 0"):
        BidirectionalLinformer(8, heads=2, context=0, slots=2)
