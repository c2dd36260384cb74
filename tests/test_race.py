"""The race: every entry gets the same search, and whoever wins is judged in every way."""

import json
import signal
from types import SimpleNamespace

import pytest
from helpers import TINY

from qllk import presets
from qllk.model.families import build
from qllk.probes import evaluate
from qllk.study import race, standings
from qllk.study.entries import ENTRIES
from qllk.training.recipe import Recipe


def result(run, nats):
    judged = {
        "window_nats": {"1024": nats, "4096": nats - 0.2},
        "stream_nats": nats - 0.3,
        "stream_longest": None,
    }
    return {
        "entry": run.entry,
        "spec": json.loads(run.spec.to_json()),
        "recipe": {name: getattr(run.recipe, name) for name in ("lr", "batch", "window")},
        "corpus": "text",
        "parameters": 1,
        "diverged": False,
        "judged_window": 1024,
        "nats_per_byte": nats,
        "bytes_per_second": 1.0,
        "held_out": 10,
        "curve": [[1.0, nats]],
        "by_position": [nats] * race._BINS,
        "judgement": None if run.quick else judged,
    }


@pytest.fixture
def asked(monkeypatch):
    """Every run that a race asks for, by stage.

    Quick runs prefer width 96, long ones 192; 8e-3 is the better rate, and one window of 2,048 the
    best batch, before one of 1,024.
    """
    stages = SimpleNamespace(runs=[], groups=[], folder=None)

    def pretend(groups, folder, pool):
        runs = [run for group in groups for run in group]
        stages.folder = folder
        stages.runs.append(runs)
        stages.groups.append([list(group) for group in groups])
        return {run.key: result(run, nats(run)) for run in runs}

    def nats(run):
        best_width = 96 if run.recipe.seconds < 500 else 192
        off = abs(run.spec.d_model - best_width) / 1000
        off += run.recipe.lr != 8e-3
        off += (run.recipe.window != 2048) / 100 + run.recipe.batch
        return 1.0 + off + run.recipe.seed / 1000

    monkeypatch.setattr(race, "_run_all", pretend)
    monkeypatch.setattr(race, "corpus", fake_corpus)
    return stages


def fake_corpus(name, fingerprint=None, ids=256):
    tokenizer = SimpleNamespace(vocab_size=ids)
    text = SimpleNamespace(fingerprint=fingerprint or name * 4, tokenizer=tokenizer)
    text.require = lambda window: text
    return text


def raced(budgets, **options):
    options = {"entries": ["qllk-2", "qllk-2-local"], "folder": "runs", "jobs": 1} | options
    options["entries"] = {name: ENTRIES[name] for name in options["entries"]}
    return race.run_race("text", budgets, **options)


def tried(runs, entry):
    """Size, rate and batch of an entry's runs."""
    return [
        (run.spec.d_model, run.recipe.lr, run.recipe.batch, run.recipe.window)
        for run in runs
        if run.entry == entry
    ]


def test_the_search_tries_everything_at_a_quarter_of_the_smallest_budget(asked):
    raced([900, 100])
    search = asked.runs[0]
    widths = {"qllk-2": (128,), "qllk-2-local": (96, 128, 192)}
    for entry, sizes in widths.items():
        assert sorted(tried(search, entry)) == sorted(
            (width, lr, batch, window)
            for width in sizes
            for lr in race.LEARNING_RATES
            for batch, window in race.BATCHES
        )
    assert {(run.recipe.seconds, run.recipe.seed, run.quick) for run in search} == {(25, 0, True)}


def test_the_best_sizes_of_each_entry_train_at_every_budget(asked):
    raced([900, 100], keep=2)
    _, smallest, longest, _ = asked.runs
    assert tried(smallest, "qllk-2-local") == [(96, 8e-3, 1, 2048), (128, 8e-3, 1, 2048)]
    assert tried(smallest, "qllk-2") == [(128, 8e-3, 1, 2048)], "its only size"
    assert sorted(tried(longest, "qllk-2-local")) == sorted(tried(smallest, "qllk-2-local"))
    assert [{run.recipe.seconds for run in runs} for runs in (smallest, longest)] == [{100}, {900}]
    assert not any(run.quick for run in smallest + longest)


def test_the_best_candidate_of_each_budget_runs_with_all_seeds(asked):
    rows = {(row["entry"], row["seconds"]): row for row in raced([100, 900], keep=3, seeds=2)}
    finals = asked.runs[-1]
    assert [run.recipe.seed for run in finals] == [0, 1] * len(rows)
    assert all(len(group) == 1 for group in asked.groups[-1]), "a final run has no rivals"
    assert rows["qllk-2-local", 100]["d_model"] == 96
    assert rows["qllk-2-local", 900]["d_model"] == 192
    assert {(row["lr"], row["batch"], row["window"]) for row in rows.values()} == {(8e-3, 1, 2048)}
    assert finals[0] in asked.runs[1], "the first seed is that of the search"


def test_the_candidates_of_an_entry_are_rivals(asked):
    raced([100])
    for groups in asked.groups[:2]:
        assert [{run.entry for run in group} for group in groups] == [{"qllk-2"}, {"qllk-2-local"}]


def test_the_search_can_be_chosen_and_every_preset_can_race(asked):
    rows = raced(
        *([100],),
        entries=["bert-nano", "t5-nano"],
        learning_rates=[1e-3, 8e-3],
        batches=[(16, 1024), (1, 2048)],
        keep=1,
        seeds=1,
    )
    assert tried(asked.runs[0], "bert-nano") == [
        (64, lr, batch, window) for lr in (1e-3, 8e-3) for batch, window in ((16, 1024), (1, 2048))
    ]
    assert len(tried(asked.runs[1], "bert-nano")) == 1
    assert [row["family"] for row in rows] == ["encoder", "encoder-decoder"]


def test_a_vocabulary_fits_the_longest_window_of_the_search_and_of_the_judgement(
    asked, monkeypatch
):
    monkeypatch.setattr(race, "corpus", lambda name: fake_corpus(name, ids=1000))
    needed = []
    for window in (1, 1024, 2048):
        raced([100], entries=["t5-nano"], batches=[(1, 1024), (1, window)])
        (size,) = {run.spec.vocab_size for run in asked.runs[-1]}
        needed.append(size)
    assert needed[0] == needed[1] < needed[2]
    raced([100], entries=["t5-nano"], batches=[(1, 16)])
    assert {run.spec.vocab_size for run in asked.runs[-1]} == {needed[0]}


@pytest.mark.parametrize("option", ["keep", "seeds", "jobs"])
def test_numbers_of_runs_are_checked(asked, option):
    with pytest.raises(ValueError, match=f"race: {option} must be a whole number above 0, got 0"):
        raced([100], **{option: 0})


def test_a_text_shorter_than_a_window_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "text").write_bytes(b"to and fro, " * 50)
    with pytest.raises(ValueError, match="a window of 2048 needs at least 2049"):
        race.run_race(str(tmp_path / "text"), [1.0], folder=tmp_path / "runs", jobs=1)
    assert not (tmp_path / "runs").exists()


def test_results_of_another_text_or_version_are_not_taken_for_these(asked, monkeypatch):
    folders = set()
    raced([100])
    folders.add(asked.folder)
    monkeypatch.setattr(race, "corpus", lambda name: fake_corpus(name, "another"))
    raced([100])
    folders.add(asked.folder)
    monkeypatch.setattr(race.torch, "__version__", "9.9")
    raced([100])
    assert len(folders | {asked.folder}) == 3


def test_a_row_has_every_seed_their_mean_and_their_spread(asked):
    row = raced([100])[0]
    assert len(row["nats"]) == 3
    assert row["spread"] == pytest.approx(0.002)
    assert row["mean_nats"] == pytest.approx(sum(row["nats"]) / 3)


def test_a_row_has_the_means_of_every_judgement(asked):
    row = raced([100])[0]
    mean = row["mean_nats"]
    assert row["stream_nats"] == pytest.approx(mean - 0.3)
    assert row["window_nats"] == pytest.approx({"1024": mean, "4096": mean - 0.2})
    assert row["stream_longest"] is None


def test_rows_are_ready_for_the_table(asked):
    assert standings.format_rows(raced([100])).count("| 1x2048 |") == 2


def test_a_run_is_known_by_all_that_decides_it():
    spec = presets.PRESETS["qllk-2"]
    run = race.Run("qllk-2", spec, Recipe(), "text")
    others = [
        *(run.but(seed=1), run.but(lr=1e-4), run.but(window=16)),
        *(run._replace(spec=spec.but(dropout=0.1)), run._replace(quick=True)),
    ]
    assert len({run.key, *(other.key for other in others)}) == 6
    assert run.key == race.Run("by another name", spec, Recipe(), "text").key


def test_a_run_says_what_it_is():
    recipe = Recipe(seconds=25.0, lr=8e-3, batch=1, window=2048)
    run = race.Run("qllk-2", presets.PRESETS["qllk-2"], recipe, "text")
    assert str(run) == "qllk-2, width 128, layers 3, lr 0.008, batch 1x2048, seed 0, 25 s"


# ---------------------------------------------------------------- the folder of results


@pytest.fixture
def pool(monkeypatch):
    """Trains in this process, one run after the other, and lists what was trained, and how."""
    trained = []

    class Training:
        def __init__(self, run, rivals):
            self.run, self.rivals = run, rivals

        def result(self):
            found = result(self.run, self.run.recipe.lr) | {"judgement": None}
            enough = race._tells_enough(self.run, found, self.rivals)
            trained.append((self.run.recipe.lr, not enough))
            return found if enough else found | {"judgement": {"stream_nats": 1.0}}

    monkeypatch.setattr(race, "as_completed", iter)
    return SimpleNamespace(submit=lambda train, *task: Training(*task), trained=trained)


def candidates(*rates, **changes):
    """Runs that are as good as their rate is low."""
    run = race.Run("qllk-2", presets.PRESETS["qllk-2"], Recipe(seconds=1.0), "text")
    return [run.but(lr=lr)._replace(**changes) for lr in rates]


def test_a_candidate_is_judged_unless_a_rival_has_beaten_it(pool, tmp_path):
    race._run_all([candidates(2.0, 3.0, 1.0)], tmp_path, pool)
    assert pool.trained == [(2.0, True), (3.0, False), (1.0, True)]


def test_a_quick_run_is_only_ranked(pool, tmp_path):
    (run,) = candidates(2.0, quick=True)
    found = race._run_all([[run]], tmp_path, pool)
    assert found[run.key]["judgement"] is None
    assert pool.trained == [(2.0, False)]


def test_the_first_candidates_of_all_entries_train_first(pool, tmp_path):
    race._run_all([candidates(2.0, 3.0), candidates(4.0, 5.0, 6.0)], tmp_path, pool)
    assert [lr for lr, _ in pool.trained] == [2.0, 4.0, 3.0, 5.0, 6.0]


def test_a_race_goes_on_from_its_folder(pool, tmp_path, capsys):
    runs = candidates(2.0, 3.0, 1.0)
    race._run_all([runs[:2]], tmp_path, pool)
    pool.trained.clear()
    found = race._run_all([runs], tmp_path, pool)
    assert pool.trained == [(1.0, True)]
    assert f"2 of 3 runs are read from {tmp_path}" in capsys.readouterr().out
    assert found == race._run_all([runs], tmp_path, pool)
    assert found.keys() == {run.key for run in runs}


def test_a_winner_that_was_beaten_before_is_trained_again_and_judged(pool, tmp_path):
    best, second = candidates(2.0, 3.0)
    race._run_all([[best, second]], tmp_path, pool)
    place = tmp_path / f"{second.key}.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"nats_per_byte": 2.9}))
    assert race._run_all([[second]], tmp_path, pool)[second.key]["judgement"]
    assert pool.trained == [(2.0, True), (3.0, False), (3.0, True)], "it is no rival of itself"


def test_a_report_of_a_run_has_its_loss(pool, tmp_path, capsys):
    (run,) = candidates(2.0)
    race._run_all([[run]], tmp_path, pool)
    assert f"[1/1] {run}: 2.0000 nats" in capsys.readouterr().out


def test_a_run_ends_with_the_race_that_it_belongs_to(monkeypatch, tmp_path):
    (tmp_path / "text").write_bytes(b"to and fro, " * 50)
    run = race.Run(
        "qllk-2",
        presets.PRESETS["qllk-2-nano"],
        Recipe(seconds=60.0, batch=1, window=16, validate_bytes=50),
        str(tmp_path / "text"),
    )
    gone = SimpleNamespace(is_alive=lambda: False)
    monkeypatch.setattr(race.multiprocessing, "parent_process", lambda: gone)
    with pytest.raises(SystemExit, match="the race was ended"):
        race._train_one(run)


def test_an_interrupt_ends_the_workers():
    with race._workers(1) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_DFL


# ---------------------------------------------------------------- judging

RECIPE = Recipe(steps=1, seconds=0.01, batch=1, window=16, validate_bytes=50)


@pytest.fixture
def short(monkeypatch):
    """Windows and streams that fit tiny models and texts."""
    monkeypatch.setattr(race, "WINDOWS", (24, 100))
    monkeypatch.setattr(race, "_LONGEST", 100)


def judged(tmp_path, spec, recipe=RECIPE, **changes):
    (tmp_path / "text").write_bytes(b"to and fro, hither and thither. " * 100)
    run = race.Run("some", spec, recipe, str(tmp_path / "text"))
    return race._train_one(run._replace(**changes))


@pytest.fixture
def trainers(monkeypatch):
    """Every trainer of a race."""
    made = []

    class Watched(race.Trainer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(race, "Trainer", Watched)
    return made


@pytest.mark.parametrize(
    ("name", "longest"),
    [("qllk-2", None), ("qllk-2-local", None), ("qllk-3", None), ("gpt", 100), ("gpt2-nano", 80)],
)
def test_a_run_is_judged_in_windows_and_as_the_longest_stream(
    tmp_path, short, trainers, name, longest
):
    found = judged(tmp_path, TINY[name])
    (trainer,) = trainers
    model, valid, judgement = trainer.model, trainer.corpus.valid, found["judgement"]
    assert judgement["stream_longest"] == longest
    assert race.longest_stream(model) == longest
    stream = evaluate.mean_loss(*evaluate.stream_losses(model, valid, longest=longest))
    assert judgement["stream_nats"] == pytest.approx(stream)
    context = trainer.spec.context or 100
    expected = {
        str(window): pytest.approx(evaluate.nats_per_token(model, valid, window), rel=1e-5)
        for window in (24, 100)
        if window <= context
    }
    assert judgement["window_nats"] == expected
    assert json.loads(json.dumps(found)) == found, "a result is the same when it is read again"


@pytest.mark.parametrize("window", [16, 40])
def test_the_windows_that_decide_do_not_depend_on_those_of_the_training(
    tmp_path, short, trainers, window
):
    recipe = Recipe(seconds=0.05, batch=1, window=window, validate_bytes=50)
    found = judged(tmp_path, TINY["gpt"], recipe)
    (trainer,) = trainers
    expected = evaluate.nats_per_token(trainer.model, trainer.corpus.valid, 24)
    assert (trainer.window, found["judged_window"]) == (window, 24)
    assert found["nats_per_byte"] == found["judgement"]["window_nats"]["24"] == expected
    assert found["curve"][-1][1] == trainer.validate(window=24) != trainer.validate()
    assert len(found["by_position"]) == race._BINS


def test_a_model_with_a_shorter_context_is_judged_in_its_own_windows(
    monkeypatch, tmp_path, short, trainers
):
    monkeypatch.setattr(race, "WINDOWS", (90, 100))
    found = judged(tmp_path, TINY["gpt2-nano"])
    assert found["judged_window"] == 80
    (trainer,) = trainers
    expected = evaluate.nats_per_token(trainer.model, trainer.corpus.valid, 80)
    assert found["nats_per_byte"] == expected
    assert found["judgement"]["window_nats"] == {}


def test_a_quick_run_is_ranked_by_the_head_of_the_held_out_split(tmp_path, short, trainers):
    found = judged(tmp_path, TINY["qllk-2"], quick=True)
    (trainer,) = trainers
    assert found["nats_per_byte"] == trainer.validate(window=24)
    assert found["held_out"] == RECIPE.validate_bytes - 1
    assert (found["curve"], found["judgement"]) == ([], None)


def test_a_run_that_diverges_is_ranked_as_it_was_before(monkeypatch, tmp_path, short, trainers):
    def diverge(*_):
        raise race.Diverged("the loss is not finite")

    monkeypatch.setattr(race, "follow", diverge)
    found = judged(tmp_path, TINY["qllk-2"])
    (trainer,) = trainers
    assert found["diverged"]
    assert (found["curve"], found["bytes_per_second"]) == ([], 0.0)
    assert found["nats_per_byte"] == trainer.validate(len(trainer.corpus.valid), window=24)


def test_a_state_that_is_full_is_not_one_that_grows(short):
    spec = TINY["gpt"].but(mixers=(("softmax", {"heads": 2, "window": 99}),))
    assert race.longest_stream(build(spec)) is None
    assert race.longest_stream(build(TINY["gpt"])) == 100


def test_a_model_that_is_asked_otherwise_is_not_judged_as_a_stream(tmp_path, short):
    found = judged(tmp_path, TINY["bert-nano"].but(vocab_size=257))
    assert found["nats_per_byte"] > 0
    assert found["judgement"] == {}
    row = race._row("bert-nano", 100, [found])
    assert (row["window_nats"], row["stream_nats"]) == ({"24": None, "100": None}, None)


@pytest.mark.parametrize(
    ("name", "windows", "read"), [("gpt", (24, 100), [100]), ("gpt2-nano", (90, 100), [])]
)
def test_no_length_is_judged_twice(monkeypatch, tmp_path, short, name, windows, read):
    lengths, judge = [], race.Trainer.stream_losses

    def watch(trainer, limit, longest):
        lengths.append(longest)
        return judge(trainer, limit, longest=longest)

    monkeypatch.setattr(race.Trainer, "stream_losses", watch)
    monkeypatch.setattr(race, "WINDOWS", windows)
    found = judged(tmp_path, TINY[name])
    assert lengths == read
    judgement = found["judgement"]
    nats = {None: judgement["stream_nats"], found["judged_window"]: found["nats_per_byte"]}
    for length, one in judgement["window_nats"].items():
        assert one == nats.get(int(length), nats[None])


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\x00", "[" * 100_000])
def test_a_damaged_result_is_as_good_as_none(tmp_path, content):
    (tmp_path / "kept.json").write_text(content)
    assert race.read_kept(tmp_path / "kept.json") is None
    assert race.read_kept(tmp_path / "nowhere.json") is None


@pytest.mark.parametrize("what", ["budgets", "entries", "learning_rates", "batches", "gpt"])
def test_a_race_without_anything_to_choose_from_is_refused(tmp_path, what):
    given = {"budgets": [1], "learning_rates": [1], "batches": [(1, 8)], "entries": {"gpt": ["a"]}}
    given |= {"entries": {"gpt": []}} if what == "gpt" else {what: {}}
    with pytest.raises(ValueError, match=f"race: {what} must not be empty"):
        race.run_race("task:copy", folder=tmp_path, jobs=1, **given)
