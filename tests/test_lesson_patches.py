"""Lesson 06: the X-ray says who cheats, and its model in place is the path read too soon."""

import re

import pytest
import torch
from helpers import same
from torch import nn
from torch.nn.functional import one_hot

from qllk.lab.lessons import patches
from qllk.model.families import build
from qllk.model.patching import PatchPath
from qllk.probes.evaluate import loss_by_position, nats_per_token
from qllk.spec import Patch, Spec
from qllk.study import published
from qllk.text.corpora import task

LENGTH = 16

each_size = pytest.mark.parametrize("size", patches.SIZES)
each_decoder = pytest.mark.parametrize("local", [False, True])


def straight(x, state=None):
    """A trunk that changes nothing."""
    return x, state


@each_decoder
@each_size
def test_in_place_all_but_the_last_byte_of_each_patch_see_their_target(size, local):
    seen = patches.seen_by(size, patches.IN_PLACE, local)
    last = range(size - 1, LENGTH - 1, size)
    assert (~seen.diagonal(1)).nonzero().flatten().tolist() == list(last)
    assert patches.leaks(seen) == LENGTH - LENGTH // size


@each_decoder
@each_size
def test_by_target_nobody_sees_what_is_to_come(size, local):
    seen = patches.seen_by(size, patches.BY_TARGET, local)
    assert not seen.triu(1).any()
    assert patches.leaks(seen) == 0


@each_size
def test_the_local_decoder_fills_every_hole_and_cures_no_leak(size):
    assert patches.unseen(patches.seen_by(size, patches.BY_TARGET, True)) == 0
    holes = patches.unseen(patches.seen_by(size, patches.BY_TARGET, False))
    assert holes == sum((t + 1) % size - 1 for t in range(LENGTH) if (t + 1) % size > 1)
    leaks = {patches.leaks(patches.seen_by(size, patches.IN_PLACE, on)) for on in (False, True)}
    assert len(leaks) == 1


@each_size
def test_a_hint_in_place_is_the_same_hint_that_the_path_gives_later(size):
    path = PatchPath(3, size, straight, 5).double()
    x = torch.randn(2, LENGTH, 3, dtype=torch.float64)
    late, early = path(x)[0], patches.InPlace(path)(x)[0]
    same(early[:, : LENGTH - size + 1], late[:, size - 1 :])
    patch = path.unfold(path.fold(x[:, -size:].reshape(2, 1, -1))).view(2, size, 3)
    same(early[:, -size:], patch)


def test_the_xray_colours_past_future_and_target_apart():
    seen = patches.seen_by(8, patches.IN_PLACE, False)
    rows = torch.tensor(patches.sight("some", seen).rows)
    assert rows[0, 0] == rows[9, 3] == 1.0
    assert rows[0, 1] == -1.0
    assert -0.5 < rows[0, 2] < 0.0
    assert rows[7, 8] == rows[0, 8] == 0.0


@pytest.mark.parametrize(
    ("size", "alignment", "local", "verdict", "words"),
    [
        (8, patches.IN_PLACE, True, "It cheats.", "14 of 15 positions see their own target"),
        (1, patches.IN_PLACE, False, "It is honest.", "0 of 15 positions .* nothing is missed"),
        (4, patches.BY_TARGET, False, "It is honest, but blind in places.", "missed 12 times"),
        (4, patches.BY_TARGET, True, "It is honest.", "nothing is missed"),
    ],
)
def test_the_xray_says_in_words_what_it_shows(size, alignment, local, verdict, words):
    heat, note = patches.xray(size, alignment, local)
    assert note.title == verdict
    assert note.lines[0] in heat.digest
    assert re.search(words, note.lines[0])


def test_every_control_of_the_widget_changes_the_picture():
    some = patches.xray.widget()
    some.wait()
    first = some.picture.value
    for name, value in {"size": 8, "alignment": patches.IN_PLACE, "local": True}.items():
        some.controls[name].value = value
        some.wait()
        assert some.picture.value != first
        some.reset()
        some.wait()
        assert some.picture.value == first


class Copier(nn.Module):
    """Sure of the byte that stands at its target's place."""

    def forward(self, ids):
        return 100.0 * one_hot(ids.long().roll(-1, 1), 256).float()


def test_hiding_the_answers_hides_them_from_a_copier():
    """It is sure of a byte that has nothing to do with the true one: 100 nats, but for chance."""
    text = task("noise", 4096).train[: 64 * 16]
    loss = patches.loss_when_hidden(Copier(), text)
    assert loss == pytest.approx(100 * 255 / 256, abs=2)


def test_hiding_what_comes_later_means_nothing_to_a_model_that_reads_the_past():
    class Reader(nn.Module):
        def forward(self, ids):
            return 100.0 * one_hot(ids.long() + 1, 257)[..., :256].float()

    counting = torch.arange(64 * 4, dtype=torch.uint8).numpy()
    text = counting[:64].repeat(4).reshape(64, 4).T.ravel()
    assert patches.loss_when_hidden(Reader(), text) == pytest.approx(0, abs=1e-6)


def test_learning_steps_down_to_a_rate_of_almost_nothing():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.randn(256))

        def forward(self, ids):
            return self.logits.expand(*ids.shape, 256)

    torch.manual_seed(0)
    losses = patches.learn(Constant(), task("noise", 1 << 16), 100, lr=0.1)
    assert len(losses) == 100
    assert losses[0] > 5.8
    assert losses[-1] < 5.6


@pytest.mark.parametrize("size", [2, 4, 8])
def test_on_the_timeline_hints_begin_where_their_patch_is_complete(size):
    diagram = patches.timeline(size)
    assert len(diagram.arrows) == LENGTH // size
    for patch, hints in diagram.arrows:
        folded, read = diagram.boxes[patch], diagram.boxes[hints]
        assert read.column == pytest.approx(folded.column + size - 1)
        assert read.colour == folded.colour
    path = PatchPath(2, size, straight, 2).double()
    hints = path(torch.randn(1, LENGTH, 2, dtype=torch.float64))[0]
    silent = (hints[0] == 0).all(dim=1).sum().item()  # before the first patch is complete
    assert f"patch 0 is complete at {silent} and read from {silent} to" in diagram.digest


# The lesson trains one model of each kind, from seed 0. What it shows holds for other seeds.
other_seeds = pytest.mark.parametrize("seed", [1, 2])


def corrected(seed):
    patch = Patch(size=8, d_model=32, layers=1, mixers=(("cumsum", {}),))
    spec = Spec(d_model=32, layers=2, mixers=(("conv", {"width": 8}),), patch=patch)
    return build(spec, seed=seed)


@pytest.mark.slow
@other_seeds
def test_noise_tells_the_leak_from_the_cure(seed):
    noise = task("noise", 1 << 21)
    torch.manual_seed(seed)
    leaky, honest = published.QLLK11(dim=64, n_layers=1), corrected(seed)
    for model in (leaky, honest):
        patches.learn(model, noise, 240)
    fresh = noise.valid[: 64 * 256 + 1]
    by_place, _ = loss_by_position(leaky, fresh, 64)
    assert by_place.mean() < 1.5
    assert by_place.view(8, 8).mean(dim=0)[7] >= 5.5
    assert abs(loss_by_position(honest, fresh, 64)[0].mean() - noise.floor) < 0.05
    assert patches.loss_when_hidden(leaky, fresh) > noise.floor + 1


@pytest.mark.slow
@other_seeds
def test_the_corrected_model_can_learn(seed):
    able, markov = corrected(seed), task("markov", 1 << 17)
    patches.learn(able, markov, 100)
    reached = nats_per_token(able, markov.valid[: 64 * 128 + 1], 64)
    assert markov.floor - 0.1 < reached < markov.floor + 0.3
