"""Where a memory pays: every judge is tried on a model for which the right verdict is known."""

import json

import numpy as np
import pytest
import torch
from helpers import TINY

from qllk.__main__ import main
from qllk.model.families import build
from qllk.presets import PRESETS
from qllk.probes import evaluate, state_bytes
from qllk.probes.evaluate import LN2
from qllk.study import memory, race
from qllk.text.corpora import Corpus
from qllk.text.tasks import asked_digits
from qllk.training.costs import Costs, measure_costs
from qllk.training.recipe import Recipe

NANO = PRESETS["qllk-3-nano"]


def as_bytes(text):
    return np.frombuffer(text, np.uint8)


# ---------------------------------------------------------------- bins and tables


def test_a_bin_holds_the_numbers_up_to_its_own_and_is_averaged_for_each_model():
    numbers = np.array([1, 10, 11, 100, 101, 5000])
    values = {"a": np.array([1, 0, 0, 0, 1, 0], bool), "b": np.arange(6.0)}
    first, second, third, last = memory.means_by_bin(values, numbers, memory._up_to(10, 100, 4096))
    assert first == {"bin": "up to 10", "count": 2, "a": 0.5, "b": 0.5}
    assert second == {"bin": "up to 100", "count": 2, "a": 0.0, "b": 2.5}
    assert third == {"bin": "up to 4,096", "count": 1, "a": 1.0, "b": 4.0}
    assert last == {"bin": "beyond 4,096", "count": 1, "a": 0.0, "b": 5.0}


def test_an_empty_bin_has_no_mean_and_a_dash_in_the_table():
    rows = memory.means_by_bin({"a": np.ones(1)}, np.array([7]), memory._up_to(5))
    assert rows[0] == {"bin": "up to 5", "count": 0, "a": None}
    assert memory.format_table("distance", rows) == (
        "| distance | count | a |\n"
        "| --- | ---: | ---: |\n"
        "| up to 5 | 0 | – |\n"
        "| beyond 5 | 1 | 1.0000 |"
    )


# ---------------------------------------------------------------- words


def test_the_distance_of_a_word_goes_back_to_its_last_whole_occurrence():
    text = b"self.name, names; self_x name self ab\xc3\xa4b 4096 ab 4096"
    distances = memory.word_distances(as_bytes(text))
    found = {}
    for start, word in ((0, b"self"), (5, b"name"), (11, b"names"), (18, b"self_x")):
        assert text[start : start + len(word)] == word
        found |= dict.fromkeys(range(start + 2, start + len(word)), 0)
    found |= dict.fromkeys((27, 28), 20)  # name, not names
    found |= dict.fromkeys((32, 33), 30)  # self, not self_x
    found |= dict.fromkeys((43, 44), 0)
    found |= dict.fromkeys((51, 52), 8)
    assert distances.tolist() == [found.get(t, -1) for t in range(len(text))]


def test_the_distance_is_to_the_last_occurrence_and_not_to_the_first():
    distances = memory.word_distances(as_bytes(b"spam spam  spam"))
    assert distances[[2, 7, 13]].tolist() == [0, 5, 6]


RECIPE = Recipe(steps=1, seconds=0.2, window=32, batch=1, lr=1e-3)
TEXT = as_bytes(b"from here to there and hither, from there to here and thither. " * 40)
CORPUS = Corpus("text", TEXT, TEXT[:1000])


def test_a_model_is_compared_with_itself_without_recall(monkeypatch):
    trained, train = {}, memory._train

    def watch(spec, text, recipe):
        assert (text, recipe) == (CORPUS, RECIPE)
        return trained.setdefault(bool(spec.recall), train(spec, text, recipe))

    monkeypatch.setattr(memory, "_train", watch)
    model, found = memory.study_text(TINY["qllk-3"], CORPUS, RECIPE)
    assert model is trained[True]
    assert trained[False].spec == TINY["qllk-3"].but(recall=None)
    for name, longest in (("words", None), ("positions", 32)):
        rows = [row for row in found[name] if row["count"]]
        assert sum(row["count"] for row in rows) == 999
        for key, recalls in (("with recall", True), ("without", False)):
            mean = sum(row["count"] * row[key] for row in rows) / 999
            nats, counts = evaluate.stream_losses(trained[recalls], CORPUS.valid, longest=longest)
            assert mean == pytest.approx(evaluate.mean_loss(nats, counts) / LN2)
        assert rows[0]["difference"] == pytest.approx(rows[0]["with recall"] - rows[0]["without"])
    assert found["reach"] == 5  # two convolutions of three bytes
    assert [row["bin"] for row in found["positions"]] == [
        *("up to 5", "up to 64", "up to 512", "beyond 512")
    ]
    first = evaluate.losses_by_id(trained[True], CORPUS.valid, longest=32).split(32)
    mean = torch.cat([losses[:5] for losses in first]).mean().item() / LN2
    assert found["positions"][0]["with recall"] == pytest.approx(mean)


def test_a_model_without_recall_has_nothing_to_compare():
    with pytest.raises(ValueError, match="this model has none; choose 'qllk-3' or 'qllk-3-nano'"):
        memory.study_memory(TINY["qllk-2"], CORPUS, 1.0)


# ---------------------------------------------------------------- digits


class Known(torch.nn.Module):
    """A model of one answer to each entry: its digit, as `answer` gives it. Its state is text."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, torch.nn.Parameter(torch.zeros(()))

    def run(self, ids, state=b""):
        logits = torch.zeros(1, ids.shape[1], 256)
        for t, id in enumerate(ids[0].tolist()):
            state = (state or b"") + bytes([id])
            if len(state) % 6 == 5:  # the digit is next
                logits[0, t, self.answer(state)] = 1.0
        return logits, state


def look_up(text):
    """The digit that stands after the last "+key", if there is one: a dictionary."""
    place = text.rfind(b"+" + text[-4:], 0, -5)
    return text[place + 5] if place >= 0 else ord("x")


LOOKUP = memory.lookup_text(size=6 * 2_000, held_out=6 * 2_000)
FAR = memory.lookup_text(size=6 * 20_000, held_out=6 * 4_000)


def shares(hits, text):
    rows = memory.means_by_bin({"found": hits}, asked_digits(text)[1], memory._DIGIT_BINS)
    assert min(row["count"] for row in rows) > 50
    return [row["found"] for row in rows]


def test_the_judge_sees_that_a_dictionary_knows_every_digit():
    assert shares(memory.digit_hits(Known(look_up), LOOKUP.valid), LOOKUP.valid) == [1.0] * 5


def test_the_judge_sees_that_always_saying_seven_is_chance_at_every_distance():
    hits = memory.digit_hits(Known(lambda text: ord("7")), LOOKUP.valid)
    positions, _ = asked_digits(LOOKUP.valid)
    assert hits.tolist() == (LOOKUP.valid[positions] == ord("7")).tolist()
    assert shares(hits, LOOKUP.valid) == pytest.approx([0.1] * 5, abs=0.1)


def test_a_dictionary_that_is_dropped_at_each_window_knows_the_near_digits_only():
    positions, distances = asked_digits(LOOKUP.valid)
    hits = memory.digit_hits(Known(look_up), LOOKUP.valid, longest=600)
    stated_here = distances <= positions % 600
    assert hits.tolist() == stated_here.tolist()
    assert 0.1 < stated_here.mean() < 0.9


def test_both_texts_of_lookup_start_with_an_entry_and_differ():
    for text in (LOOKUP.train, LOOKUP.valid):
        assert set(text[::6]) == set(b"+-")
    assert LOOKUP.train.tobytes() != LOOKUP.valid.tobytes()


def test_qllk_3_nano_finds_digits_far_beyond_the_windows_of_its_training():
    recipe = Recipe(steps=100, window=256, batch=1, lr=8e-3)
    trainer = race.make_trainer(NANO, FAR, recipe)
    race.follow(trainer, "step", ())
    assert race.longest_stream(trainer.model) is None
    _, distances = asked_digits(FAR.valid)
    found = memory.digit_hits(trainer.model, FAR.valid)
    assert found[distances > 2048].mean() > 0.6
    dropped = memory.digit_hits(trainer.model, FAR.valid, longest=256)
    assert dropped[distances > 2048].mean() < 0.2


def test_each_reader_trains_on_the_same_windows_and_attention_is_judged_in_its_own(monkeypatch):
    trained, judged = [], []

    def train(spec, text, recipe):
        assert text is LOOKUP
        trained.append((spec, recipe))
        return build(spec, seed=0)

    def digit_hits(model, text, longest):
        judged.append(longest)
        return np.arange(len(asked_digits(text)[0])) % len(judged) == 0

    monkeypatch.setattr(memory, "_train", train)
    monkeypatch.setattr(memory, "digit_hits", digit_hits)
    rows = memory.study_lookup(LOOKUP, 1.5, seed=3)
    assert [spec.layers for spec, _ in trained] == [2, 4, 2]
    assert [bool(spec.recall) for spec, _ in trained] == [True, False, False]
    assert {(r.window, r.batch, r.seconds, r.seed) for _, r in trained} == {(2048, 1, 1.5, 3)}
    assert judged == [None, None, 4096]
    assert list(rows[0]) == ["bin", "count", *memory._READERS]
    assert rows[0]["qllk-3-nano"] == 1.0
    assert [row["gpt, two layers"] for row in rows] == pytest.approx([1 / 3] * 5, abs=0.1)


# ---------------------------------------------------------------- costs


def costs(constant, growth):
    return Costs(1, 1.0, constant, growth, 1)


def test_a_state_is_smaller_from_the_first_length_at_which_it_is():
    assert memory.smaller_from(costs(1000, 0.0), costs(0, 100.0)) == 11  # at 10 they are equal
    assert memory.smaller_from(costs(1001, 0.0), costs(0, 100.0)) == 11
    assert memory.smaller_from(costs(1000, 10.0), costs(40, 100.0)) == 11
    assert memory.smaller_from(costs(5, 0.0), costs(40, 100.0)) == 0
    assert memory.smaller_from(costs(5, 1.0), costs(0, 1.0)) is None


def test_the_length_from_which_a_state_is_smaller_is_that_of_the_states_themselves():
    specs = TINY["qllk-3"], TINY["gpt"]
    length = memory.smaller_from(*(measure_costs(spec, 64, 1) for spec in specs))
    for size, smaller in ((length - 1, False), (length, True)):
        ids = torch.zeros(1, size, dtype=torch.long)
        first, second = (state_bytes(build(spec).final_state(ids)) for spec in specs)
        assert (first < second) == smaller


def test_the_state_is_shown_by_length_beside_a_cache():
    found = memory.study_state(NANO)
    sizes = [row["this model"] for row in found["rows"]]
    assert len(set(sizes)) == 1
    assert sizes[0] == state_bytes(build(NANO).final_state(torch.zeros(1, 1, dtype=torch.long)))
    assert found["rows"][0] == {"bytes": 1000, "this model": sizes[0], "gpt": 4 * 2 * 160 * 4000}
    assert found["smaller_from"] == sizes[0] // (4 * 2 * 160 * 4) + 1


def test_speed_is_measured_after_a_text_of_each_length(monkeypatch):
    seen = []

    def medians(runs, rounds):
        seen.extend(run.args[1].t for run in runs)
        assert all(len(run()) == memory._STEPS for run in runs)
        assert not model.training
        return [0.002, 0.003]

    monkeypatch.setattr(memory.measure, "median_cpu_seconds", medians)
    model = build(TINY["gpt"], seed=0).train()
    found = memory.study_speed(model, TEXT[:100], (40, 250))
    assert seen == [40, 250]
    assert model.training
    assert [row["bytes"] for row in found["rows"]] == [40, 250]
    assert [row["ms"] for row in found["rows"]] == [0.5, 0.75]
    assert found["ratio"] == 1.5
    first, second = (row["state"] for row in found["rows"])
    assert second == first * 250 / 40


@pytest.mark.slow
def test_a_byte_after_a_million_costs_what_it_costs_after_a_thousand():
    found = memory.study_speed(build("qllk-3", seed=0), TEXT, (1_000, 1_000_000))
    assert found["ratio"] == pytest.approx(1.0, abs=0.05)
    first, second = (row["state"] for row in found["rows"])
    assert first == second


# ---------------------------------------------------------------- the command


def test_the_command_writes_its_results_as_data_and_as_markdown(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "lookup_text", lambda: LOOKUP)
    monkeypatch.setattr(memory, "_LENGTHS", (100, 1_000))
    (tmp_path / "text").write_bytes(TEXT.tobytes() * 20)
    report = tmp_path / "new" / "memory.json"
    line = ["memory", "--model", "qllk-3-nano", "--corpus", str(tmp_path / "text")]
    line += ["--seconds", "0.1", "--report", str(report)]
    assert main(line) == 0
    tables = report.with_suffix(".md").read_text()
    assert capsys.readouterr().out == tables
    facts = json.loads(report.read_text())
    assert (facts["model"], facts["seconds"], facts["window"]) == ("qllk-3-nano", 0.1, 2048)
    assert facts["machine"]["torch"] == torch.__version__
    assert memory.format_study(facts) + "\n" == tables
    for name in ("words", "positions", "lookup"):
        cells = [f"{row['bin']} | {row['count']:,} |" for row in facts[name]]
        assert all(cell in tables for cell in cells)
    assert f"smaller one from {facts['state']['smaller_from']:,} bytes on" in tables
    assert f"last time is {facts['speed']['ratio']:.3f} times the first" in tables
    monkeypatch.setattr(memory, "study_memory", lambda *asked: facts)
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "qllk-3-nano"
    facts["state"]["smaller_from"] = None
    assert "does not become the smaller one" in memory.format_study(facts)
