"""`python -m qllk train`: what is told before the first step, and what is left after the last."""

import json
import os
import signal

import pytest

from qllk.__main__ import main
from qllk.study import session
from qllk.training import checkpoint
from qllk.training.trainer import Trainer

TINY = "--batch 1 --window 32 --validate-every 2 --validate-bytes 64 --precision float32"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a text, in which the command is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_bytes(b"the cat sat on the mat. " * 40)
    return tmp_path


@pytest.fixture
def train(capsys):
    """Call `train` with a line of options; returns the exit code, the output and the errors."""

    def call(line, resume=False):
        start = "train" if resume else f"train --model qllk-2-nano --corpus text.txt {TINY}"
        code = main([*start.split(), *line.split()])
        return code, *capsys.readouterr()

    return call


def step_of(path):
    return checkpoint.read_metadata(path)["step"]


@pytest.fixture
def at_step(monkeypatch):
    """Let something happen inside of a step, after its number of steps are done."""

    def arrange(step, event):
        usual = Trainer._backward

        def backward(self, *args):
            found = usual(self, *args)
            return (event() or found) if self.step == step else found

        monkeypatch.setattr(Trainer, "_backward", backward)

    return arrange


# ---------------------------------------------------------------- before the first step


@pytest.fixture
def no_step(monkeypatch):
    def refuse(self):
        raise AssertionError("a step was made")

    monkeypatch.setattr(Trainer, "__next__", refuse)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--report here", "'here' cannot be written"),
        ("--save here", "exists: --resume 'here' continues the run in it, and --replace writes"),
        ("--save here --replace", "'here' cannot be written"),
        ("--plot here/c.txt", "must end in .png; got 'here/c.txt'"),
        ("--plot here.png", "'here.png' cannot be written"),
        ("--save text.txt", "'text.txt' exists"),
        ("--save text.txt/run", "'text.txt/run' cannot be written"),
        ("--report text.txt/x", "'text.txt/x' cannot be written"),
        ("--save /proc/run", "'/proc/run' cannot be written"),
        ("--save run --report run", "two results cannot be written to one file: run"),
        ("--save run --report here/../run", "two results cannot be written to one file"),
        ("--steps 9 --minutes 1", "--steps and --minutes exclude each other"),
        ("--sample-at 0 --prompt=", "the prompt is empty"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_first_step(
    train, folder, no_step, options, said
):
    (folder / "here").mkdir()
    (folder / "here.png").mkdir()
    code, out, err = train(options)
    assert (code, out) == (1, "")
    assert said in err


@pytest.mark.parametrize("path", ["", "a\0b", "~nobody-of-this-name/x"])
@pytest.mark.parametrize("option", ["--save", "--resume", "--report", "--plot"])
def test_a_path_that_is_none_is_told_in_one_sentence(capsys, no_step, option, path):
    with pytest.raises(SystemExit, match="2"):
        main(["train", option, path])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument {option}: " in line


def test_the_home_folder_may_be_written_as_a_tilde(train, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    code, _, _ = train("--steps 1 --save ~/run --report ~/report.json --plot ~/plot.png")
    assert code == 0
    assert {p.name for p in (folder / "home").iterdir()} >= {"run", "report.json", "plot.png"}
    code, out, _ = train("--resume ~/run", resume=True)
    assert (code, out[:11]) == (0, "qllk-2-nano")
    assert not (folder / "~").exists()


def test_a_file_that_exists_is_written_over_only_when_asked(train, folder):
    assert train("--steps 1 --save run")[0] == 0
    before = (folder / "run").read_bytes()
    code, _, err = train("--steps 2 --save run")
    assert code == 1
    assert (
        "'run' exists: --resume 'run' continues the run in it, and --replace writes over it" in err
    )
    assert (folder / "run").read_bytes() == before
    assert train("--steps 9 --save run --replace")[0] == 0
    assert train("--steps 2 --save run --replace")[0] == 0
    assert step_of("run") == 2
    assert train("--steps 2 --seed 1 --save run --replace")[0] == 0


# ---------------------------------------------------------------- on every way out


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_run_is_saved_and_reports_what_it_has_measured(train, at_step, name, folder):
    at_step(4, lambda: signal.raise_signal(getattr(signal, name)))
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    code, out, err = train("--steps 9 --save run --report r.json --plot c.png --sample-at 0 99")
    after = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    report = json.loads((folder / "r.json").read_text())
    assert code == 130
    assert before == after
    assert step_of("run") == report["steps"] == 4
    assert "saving to 'run'" in err
    assert "interrupted after step 4, so not evaluated on the whole held-out split" in out
    assert report["ended"] == "interrupted after step 4"
    assert len(report["curve"]) == 2
    assert len(report["samples"]) == out.count("seconds of training ---") == 1
    assert "nats_per_byte" not in report
    assert (folder / "c.png").stat().st_size > 1000


def test_pressing_interrupt_again_and_again_does_not_undo_the_save(train, at_step, monkeypatch):
    def save(*args, **options):
        for _ in range(10):
            signal.raise_signal(signal.SIGINT)
        return usual(*args, **options)

    class Bar(session.tqdm):
        def set_postfix_str(self, text, refresh=True):
            if text.startswith("saving"):
                signal.raise_signal(signal.SIGINT)
            super().set_postfix_str(text, refresh)

    usual = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(session, "tqdm", Bar)
    at_step(4, lambda: signal.raise_signal(signal.SIGINT))
    assert train("--steps 9 --save run")[0] == 130
    assert step_of("run") == 4


def test_an_interrupt_while_the_run_is_saved_in_between_does_not_save_it_twice(train, monkeypatch):
    def save(trainer, path, **options):
        saved.append(trainer.step)
        usual(trainer, path, **options)
        signal.raise_signal(signal.SIGINT)

    usual, saved = checkpoint.save, []
    monkeypatch.setattr(checkpoint, "save", save)
    assert train("--steps 9 --save run --save-every 0")[0] == 130
    assert saved == [1]
    assert step_of("run") == 1


def test_a_run_interrupted_while_it_is_evaluated_keeps_its_report(train, monkeypatch, folder):
    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "loss_by_position", press)
    line = "--steps 3 --validate-every 99 --save run --report r.json --sample-at 0"
    monkeypatch.setattr(checkpoint, "save", lambda *_, **options: None)
    code, out, _ = train(line)
    assert code == 130
    assert "interrupted after step 3" in out
    assert len(json.loads((folder / "r.json").read_text())["samples"]) == 1


def test_what_is_interrupted_before_its_first_step_leaves_an_older_report(train, at_step, folder):
    (folder / "r.json").write_text("older")
    at_step(0, lambda: signal.raise_signal(signal.SIGINT))
    code, out, _ = train("--steps 3 --report r.json")
    assert (code, out) == (130, "")
    assert (folder / "r.json").read_text() == "older"


def diverge():
    return float("nan"), "float32"


def test_a_run_that_diverges_keeps_its_newest_step_and_goes_on_at_a_lower_rate(
    train, at_step, folder, monkeypatch
):
    with monkeypatch.context():
        at_step(5, diverge)
        code, out, err = train("--steps 9 --save run --save-every 0 --report r.json")
        assert code == 1
        assert step_of("run") == 5, "the run itself is back at step 0"
        assert "`python -m qllk train --resume 'run' --lr RATE` does so" in err
        assert "ended by an error after step 5" in out
        assert len(json.loads((folder / "r.json").read_text())["curve"]) == 2
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    code, out, err = train("--resume run --lr 0.0001", resume=True)
    assert code == 0
    assert "this run is saved to 'run'" in err
    metadata = checkpoint.read_metadata("run")
    assert (metadata["step"], metadata["lr"]) == (9, 0.0001)


def test_a_run_that_diverges_before_its_first_save_can_be_resumed(train, at_step):
    at_step(5, diverge)
    assert train("--steps 9 --save run")[0] == 1
    assert step_of("run") == 0


def test_a_run_that_diverges_and_is_kept_nowhere_says_so(train, at_step):
    at_step(5, diverge)
    assert "without --save nothing of it is kept" in train("--steps 9")[2]


def test_a_full_disk_is_told_at_once_and_costs_no_result(train, monkeypatch):
    def save(trainer, path, **options):
        raise OSError(f"{str(path)!r} cannot be written: No space left on device")

    monkeypatch.setattr(checkpoint, "save", save)
    code, out, err = train("--steps 4 --save run --save-every 0 --sample-at 0")
    assert code == 1
    assert err.count("qllk: 'run' cannot be written: No space left on device") == 5
    assert "ended by an error after step 4" in out
    assert "seconds of training ---" in out


@pytest.mark.parametrize("what", ["save_picture", "write_atomically"])
def test_results_are_printed_before_they_are_written_or_drawn(train, monkeypatch, capsys, what):
    def fail(*_):
        printed.append(capsys.readouterr().out)
        raise OSError("no space left")

    printed = []
    monkeypatch.setattr(session, what, fail)
    code, _, err = train("--steps 2 --report r.json --plot c.png")
    assert (code, "no space left" in err) == (1, True)
    assert "bits per byte" in printed[0]
    others = {"r.json", "c.png"} & set(os.listdir())
    assert others == ({"r.json"} if what == "save_picture" else {"c.png"}), "the other is there"


def test_no_part_of_a_picture_is_taken_for_latex(train, folder, monkeypatch):
    (folder / "matplotlibrc").write_text("text.usetex: True\nfont.size: 3\n")
    import matplotlib

    with matplotlib.rc_context(fname="matplotlibrc"):
        assert train("--steps 2 --plot c.png")[0] == 0


def test_a_validation_of_one_byte_is_one_of_two(train):
    assert train("--steps 2 --validate-bytes 1")[0] == 0


# ---------------------------------------------------------------- a run that is resumed


@pytest.fixture
def half(train, at_step):
    """A run of 6 steps that was interrupted after 3."""
    with pytest.MonkeyPatch.context() as patch:
        usual = Trainer._backward

        def backward(self, *args):
            if self.step == 3:
                raise KeyboardInterrupt
            return usual(self, *args)

        patch.setattr(Trainer, "_backward", backward)
        assert train("--steps 6 --save run")[0] == 130
    assert step_of("run") == 3


def test_a_resumed_run_is_saved_to_its_own_file_and_says_so(train, half):
    code, _, err = train("--resume run", resume=True)
    assert code == 0
    assert "this run is saved to 'run'" in err
    assert step_of("run") == 6


def test_a_resumed_run_that_is_saved_elsewhere_leaves_its_file(train, half):
    assert train("--resume run --save other", resume=True)[0] == 0
    assert (step_of("run"), step_of("other")) == (3, 6)
    assert train(f"--resume run --save {os.path.abspath('run')}", resume=True)[0] == 0
    code, _, err = train("--resume run --save other", resume=True)
    assert code == 1
    assert "'other' exists" in err


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("--lr 0.001", {"lr": 0.001}),
        ("--steps 4", {"step": 4}),
        ("--steps 8", {"step": 8}),
        ("--batch 2", {"batch": 2}),
        ("--precision auto", {"step": 6}),
        ("--device cpu", {"device": "cpu"}),
        ("--corpus other.txt", {"step": 6}),
        (f"--model qllk-2-nano --corpus text.txt --steps 6 {TINY}", {"step": 6}),
    ],
)
def test_an_option_of_a_resumed_run_is_obeyed(train, half, folder, options, found):
    (folder / "other.txt").write_bytes(b"another text about a dog. " * 40)
    code, _, err = train(f"--resume run {options}", resume=True)
    assert (code, err.count("qllk: ")) == (0, 2 if "other" in options else 1), err
    metadata = checkpoint.read_metadata("run")
    assert {name: metadata[name] for name in found} == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--window 16", "window cannot be changed"),
        ("--seed 3", "seed cannot be changed"),
        ("--optimizer lion", "optimizer cannot be changed"),
        ("--model gpt-nano", "leave out --model"),
        ("--dropout 0.5", "leave out --model, --dropout"),
        ("--ngram-dropout 0.5", "for models with n-grams, which 'qllk-2-nano' does not have"),
        ("--steps 9 --minutes 1", "--steps and --minutes exclude each other"),
        ("--device cuda:77", "no device 'cuda:77' here"),
        ("--lr nan", "must be a number above 0"),
        ("--corpus nowhere.txt", "no corpus 'nowhere.txt'"),
        ("--corpus text.txt/x", "no corpus 'text.txt/x'"),
    ],
)
def test_an_option_that_a_resumed_run_cannot_follow_is_refused_by_name(
    train, half, no_step, options, said
):
    code, _, err = train(f"--resume run {options}", resume=True)
    assert code == 1
    assert said in err
    assert step_of("run") == 3


def test_a_run_whose_text_has_changed_goes_on_on_another_when_asked(train, half, folder):
    (folder / "text.txt").write_bytes(b"now it is about a dog. " * 40)
    code, _, err = train("--resume run", resume=True)
    assert code == 1
    assert "text.txt" in err
    code, _, err = train("--resume run --corpus text.txt", resume=True)
    assert code == 0
    assert "it continues on another text" in err
