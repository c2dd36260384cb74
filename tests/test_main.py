"""The command line: what it prints, and what it says when something goes wrong."""

import json
import re

import pytest
import torch
from command_helpers import run_line

from qllk.__main__ import _parser, main
from qllk.lab import grade
from qllk.model import sample
from qllk.model.sample import generate, greedy, penalize_repetition, sampler
from qllk.presets import PRESETS, recipe_of
from qllk.spec import Spec
from qllk.study import memory, options
from qllk.text.corpora import corpus
from qllk.training import checkpoint, costs
from qllk.training.recipe import Recipe
from qllk.training.trainer import Trainer

TINY = "--steps 3 --batch 1 --window 32 --validate-every 2 --validate-bytes 64 --precision float32"


def test_doctor_names_the_cpu_and_its_precisions(capsysbinary):
    code, out, _ = run_line(capsysbinary, "doctor --json")
    cpu = json.loads(out)["devices"][-1]
    assert code == 0
    assert cpu["name"] == "cpu"
    assert "float32" in cpu["precisions"]
    assert cpu["fastest"] in cpu["precisions"]


@pytest.fixture
def few_presets(monkeypatch):
    few = ("qllk-2-nano", "bert-nano", "t5-nano", "randygpt-0.3")
    monkeypatch.setattr("qllk.__main__.PRESETS", {name: PRESETS[name] for name in few})


def test_presets_says_what_each_model_costs(capsysbinary, few_presets):
    code, out, _ = run_line(capsysbinary, "presets")
    table, note = out.split("\n\n")
    head, *rows = table.splitlines()
    assert code == 0
    assert head.split()[:3] == ["model", "parameters", "FLOPs/token"]
    first, second, *_ = (" ".join(row.split()) for row in rows)
    assert first == "qllk-2-nano 342,272 351.2 K 9.5 KiB 0 B 74.8 MiB 1,024"
    assert second == "bert-nano 237,569 696.4 K - - 77.1 MiB 256"
    assert len({len(row) for row in (head, *rows)}) == 1, "columns are aligned"
    assert "as much text as 4 of the\nlongest windows" in note
    assert max(map(len, note.splitlines())) <= 100
    assert "three times as many" in note


def test_presets_as_json_has_plain_numbers_and_the_sizes_they_are_for(capsysbinary, few_presets):
    code, out, _ = run_line(capsysbinary, "presets --json --window 100 --batch 2")
    facts = json.loads(out)
    assert code == 0
    for name, row in facts.items():
        window = min(100, PRESETS[name].context or 100)
        spec = row.pop("spec")
        assert Spec.from_json(json.dumps(spec)) == PRESETS[name]
        rows = 2 * (100 // window)  # the trainer reads as much text with any context
        found = costs.measure_costs(name, window, rows)
        assert row == found._asdict() | {"window": window, "batch": rows}
    assert facts["randygpt-0.3"]["window"] == 64
    assert facts["bert-nano"]["state_bytes"] is None


def test_train_saves_resumes_and_samples(capsysbinary, tmp_path, text):
    saved, report = tmp_path / "run.safetensors", tmp_path / "report.json"
    line = f"train --model qllk-2-nano --corpus {text} {TINY} --save {saved} --report {report}"
    code, out, _ = run_line(capsysbinary, line)
    assert code == 0
    assert "bits per byte" in out
    facts = json.loads(report.read_text())
    assert facts["steps"] == 3
    assert facts["held_out"] == len(text.read_bytes()) // 10 - 1

    code, out, _ = run_line(capsysbinary, f"train --resume {saved} --json")
    assert code == 0
    assert json.loads(out)["steps"] == 3

    code, out, _ = run_line(capsysbinary, f"sample {saved} --prompt the --length 5 --seed 1")
    assert code == 0
    assert out.startswith("the")


def test_train_trains_qllk_3_unless_another_model_is_given():
    recipe = options.read_recipe(_parser().parse_args(["train"]))
    assert {name: getattr(recipe, name) for name in recipe_of("qllk-3")} == recipe_of("qllk-3")


def test_train_takes_the_path_of_a_spec(capsysbinary, tmp_path, text):
    path = tmp_path / "spec.json"
    path.write_text(PRESETS["qllk-2-nano"].but(d_model=32).to_json())
    line = f"train --model {path} --corpus {text} {TINY} --dropout 0.1 --save {tmp_path / 'run'}"
    code, _, _ = run_line(capsysbinary, line)
    assert code == 0
    model, _ = checkpoint.load_model(tmp_path / "run")
    assert (model.spec.d_model, model.spec.dropout) == (32, 0.1)


def test_train_changes_the_dropout_of_ngrams(capsysbinary, tmp_path, text):
    line = f"train --model qllk-3-nano --corpus {text} {TINY} --ngram-dropout 0.5"
    assert run_line(capsysbinary, f"{line} --save {tmp_path / 'run'}")[0] == 0
    model, _ = checkpoint.load_model(tmp_path / "run")
    assert (model.spec.dropout, model.spec.ngrams.dropout) == (0.0, 0.5)


def test_train_evaluates_a_complete_run_again(capsysbinary, tmp_path, text):
    line = f"train --model qllk-2-nano --corpus {text} {TINY} --save {tmp_path / 'run'} --json"
    first = json.loads(run_line(capsysbinary, line)[1])
    _, out, err = run_line(capsysbinary, f"train --resume {tmp_path / 'run'} --json")
    assert json.loads(out)["nats_per_byte"] == first["nats_per_byte"]
    assert "this run is complete; it is only evaluated again" in err


@pytest.fixture
def checkpoints(tmp_path, text):
    """The files of a model, and of one that has been trained a little longer."""
    paths = tmp_path / "model.safetensors", tmp_path / "draft.safetensors"
    for steps, path in enumerate(paths, 3):
        recipe = Recipe(steps=steps, batch=1, window=32, lr=0.01, precision="float32")
        checkpoint.save(trained("qllk-2-nano", corpus(str(text)), recipe), path)
    return paths


def trained(*what):
    trainer = Trainer(*what)
    list(trainer)
    return trainer


def written(capsysbinary, line):
    assert main(line.split()) == 0
    return capsysbinary.readouterr().out


@pytest.mark.parametrize(
    ("options", "pick"),
    [
        ("--temperature 0", lambda: greedy),
        ("--seed 5", lambda: sampler(0.8, seed=5)),
        ("--seed 5 --temperature 1.2 --top-k 5", lambda: sampler(1.2, top_k=5, seed=5)),
        ("--seed 5 --top-p 0.3", lambda: sampler(0.8, top_p=0.3, seed=5)),
        (
            "--temperature 0 --repetition-penalty 2",
            lambda: penalize_repetition(greedy, 2.0, torch.tensor([list(b"the")])),
        ),
    ],
)
def test_sample_writes_what_generate_does(capsysbinary, checkpoints, options, pick):
    text = generate(checkpoint.load_model(checkpoints[0])[0], "the", 30, pick())
    line = f"sample {checkpoints[0]} --prompt the --length 30 {options}"
    assert written(capsysbinary, line) == b"the" + text + b"\n"


def test_sample_writes_nothing_when_asked_for_nothing(capsysbinary, checkpoints):
    assert written(capsysbinary, f"sample {checkpoints[0]} --prompt the --length 0") == b"the\n"


def test_sample_with_a_draft_writes_the_same(capsysbinary, checkpoints, monkeypatch):
    model, draft = checkpoints
    line = f"sample {model} --prompt the --length 30 --temperature 0"
    plain, calls, speculate = written(capsysbinary, line), [], sample.speculate

    def watched(*args, **options):
        calls.append(args[4])
        return speculate(*args, **options)

    monkeypatch.setattr(sample, "speculate", watched)
    assert written(capsysbinary, f"{line} --draft {draft}") == plain
    assert written(capsysbinary, f"{line} --draft {draft} --ahead 7") == plain
    assert calls == [4, 7]
    line = f"sample {model} --draft {draft} --length 30 --seed"
    assert written(capsysbinary, f"{line} 1") == written(capsysbinary, f"{line} 1")
    assert written(capsysbinary, f"{line} 1") != written(capsysbinary, f"{line} 2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--draft", "/nowhere"], "no checkpoint at '/nowhere'"),
        (["--draft", "x", "--repetition-penalty", "2"], "exclude each other"),
        (["--repetition-penalty", "0"], "penalty must be a finite number above 0, got 0.0"),
        (["--temperature", "-1"], "temperature must be 0 (greedy) or more, got -1.0"),
        (["--length", "-1"], "length must be 0 or more, got -1"),
        (["--prompt", ""], "the prompt is empty; give at least one byte"),
    ],
)
def test_sample_says_what_it_cannot_do(capsysbinary, checkpoints, options, said):
    assert main(["sample", str(checkpoints[0]), *options]) == 1
    out, err = capsysbinary.readouterr()
    assert (out, said in err.decode()) == (b"", True)


@pytest.mark.parametrize(
    ("model", "asked"), [("bert-nano", "hidden bytes"), ("t5-nano", "lost bytes")]
)
def test_a_model_that_fills_gaps_is_trained_evaluated_and_shown(
    capsysbinary, tmp_path, text, model, asked
):
    line = f"train --model {model} --corpus {text} {TINY} --save {tmp_path / 'run'} --sample-at 0"
    code, out, _ = run_line(capsysbinary, line)
    assert code == 0
    assert re.search(rf"held out, all [0-9]+ {asked}: [0-9.]+ nats", out)
    assert "\n\n" in out.split("seconds of training ---")[1], (
        "the text that was given is printed above what was made"
    )
    code, out, _ = run_line(capsysbinary, f"train --resume {tmp_path / 'run'}")
    assert out.startswith(f"{model}, ")
    code, _, err = run_line(capsysbinary, f"sample {tmp_path / 'run'}")
    assert code == 1
    assert "which cannot continue a prompt; `python -m qllk train" in err


def test_other_ids_than_bytes_are_trained_on_and_written(capsysbinary, tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("the cat sat on the mat, the dog lay on the log\n" * 40)
    place = f"characters:{tmp_path / 'text.txt'}"
    line = f"train --model randygpt-0.3 --corpus {place} {TINY} --save {tmp_path / 'run'}"
    assert run_line(capsysbinary, line)[0] == 0
    code, out, _ = run_line(
        capsysbinary, f"sample {tmp_path / 'run'} --prompt cat --length 9 --seed 1"
    )
    assert code == 0
    assert re.fullmatch("cat[a-z, \\n]{9}\n", out)
    code, _, err = run_line(capsysbinary, f"sample {tmp_path / 'run'} --prompt CAT")
    assert code == 1
    assert "character 'A' is not among" in err


def test_a_plot_of_a_run_that_never_validated_is_drawn(capsysbinary, tmp_path, text):
    line = f"train --model qllk-2-nano --corpus {text} {TINY} --validate-every 99"
    assert run_line(capsysbinary, f"{line} --plot {tmp_path / 'curve.png'}")[0] == 0
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_an_invalid_prompt_fails_before_training(capsysbinary, text):
    line = f"train --model qllk-2-nano --corpus {text} --steps 99999 --window 32 --sample-at 5"
    code, _, err = run_line(capsysbinary, f"{line} --prompt=")
    assert code == 1
    assert "the prompt is empty" in err


def test_sampling_ends_where_the_context_ends(capsysbinary, tmp_path, text):
    line = f"train --model local-code-model --corpus {text} {TINY} --save {tmp_path / 'run'}"
    assert run_line(capsysbinary, line)[0] == 0
    sampled = f"sample {tmp_path / 'run'} --length 10 --prompt "
    for drafted in ("", f" --draft {tmp_path / 'run'} --ahead 99"):
        for given in (60, 64):
            code, out, err = run_line(capsysbinary, f"{sampled}{'a' * given}{drafted}")
            assert (code, err) == (0, "qllk: the context of 64 ids is full\n")
            assert out.startswith("a" * given)
            assert len(out.encode()) >= 65 - out.count("\ufffd"), "the last place is used"
        code, out, err = run_line(capsysbinary, f"{sampled}{'a' * 65}{drafted}")
        assert (code, out) == (1, "")
        assert "the prompt has 65 ids, but the context of the model has only 64" in err


def test_a_draft_with_another_tokenizer_is_refused(capsysbinary, tmp_path, text):
    for kind in ("", "characters:"):
        name = kind.strip(":") or "bytes"
        line = f"train --model qllk-2-nano --corpus {kind}{text} {TINY} --save {tmp_path / name}"
        assert run_line(capsysbinary, line)[0] == 0
    code, _, err = run_line(
        capsysbinary, f"sample {tmp_path / 'bytes'} --draft {tmp_path / 'characters'}"
    )
    assert code == 1
    assert "has another tokenizer than" in err


def test_every_option_of_a_recipe_says_what_it_means(capsys):
    for command in ("train", "bench"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        words = " ".join(capsys.readouterr().out.split())
        assert "--optimizer OPTIMIZER adamw, adamw-bfloat16, lion" in words
        assert "maximum norm of the gradient (default: 1.0)" in words
    assert "--seed SEED" not in words  # a race sets its own


def test_help_shows_only_defaults_that_say_something(capsys):
    for command in ("doctor", "presets", "train", "sample", "bench", "memory"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        words = " ".join(capsys.readouterr().out.split())
        for silent in ("default: None", "default: False", "default: [])", "default: )"):
            assert silent not in words


def test_samples_are_taken_at_their_time(capsysbinary, text):
    line = f"train --model qllk-2-nano --corpus {text} {TINY} --sample-at 0 1000 --json"
    _, out, _ = run_line(capsysbinary, line)
    (first, _), (last, _) = json.loads(out)["samples"]
    assert 0 < first < last == json.loads(out)["seconds"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train --model nonsense", "unknown preset 'nonsense'; choose from"),
        ("train --model nonsense --corpus /nowhere", "unknown preset 'nonsense'"),
        ("train --model /nowhere.json", "no file '/nowhere.json' with a Spec"),
        ("train --corpus task:nonsense", "unknown task 'nonsense'; choose from"),
        ("train --minutes 0 --precision float32", "seconds must be a number above 0, got 0"),
        ("train --corpus /nowhere", "no corpus '/nowhere'"),
        ("train --device cuda:99 --precision float32", "no device 'cuda:99' here"),
        ("train --precision float8", "unknown precision 'float8'"),
        ("train --model gpt --ngram-dropout 0.5", "for models with n-grams, which 'gpt' does not"),
        ("bench --dropout 1", "Spec: dropout must lie in [0, 1), got 1.0"),
        ("train --lr -1", "lr must be a number above 0"),
        ("sample /nowhere", "no checkpoint at '/nowhere'"),
        ("presets --window 0", "window must be a whole number above 0, got 0"),
        ("presets --batch 0", "batch must be a whole number above 0, got 0"),
        ("bench --entries qllk-4", "no entry 'qllk-4'"),
        ("memory --model qllk-2", "this model has none; choose 'qllk-3' or 'qllk-3-nano'"),
        ("memory --seconds 0", "seconds must be a number above 0, got 0"),
        ("bench --batches 4*1024", "per step x ids per window, got '4*1024'; write for example"),
        ("bench --batches 0x1024 --keep 1 --precision float32", "batch must be a whole number"),
        ("bench --keep 0 --precision float32", "keep must be a whole number above 0, got 0"),
        ("bench --seeds 0 --precision float32", "seeds must be a whole number above 0, got 0"),
    ],
)
def test_an_error_is_reported_in_one_line(capsysbinary, line, said):
    code, _, err = run_line(capsysbinary, line)
    assert code == 1
    assert said in err
    assert "Traceback" not in err


def test_the_memory_study_writes_two_files_that_can_be_written(
    capsysbinary, monkeypatch, tmp_path, text
):
    monkeypatch.setattr(memory, "study_memory", None)
    for path in (tmp_path / "x.md", tmp_path, text / "x.json"):
        code, out, err = run_line(capsysbinary, f"memory --corpus {text} --report {path}")
        assert (code, out) == (1, "")
        assert "written" in err


def test_grades_that_are_there_when_grading_is_interrupted_are_kept(
    capsysbinary, monkeypatch, tmp_path
):
    def grades(folder, seconds):
        yield grade.Grade("a\udcff\x1b.ipynb", "x", "correct", "")
        raise KeyboardInterrupt

    monkeypatch.setattr(grade, "grade", grades)
    code, out, _ = run_line(capsysbinary, f"grade {tmp_path} --csv {tmp_path / 'grades.csv'}")
    assert code == 130
    assert "correct" in out
    assert "correct" in (tmp_path / "grades.csv").read_text()
    code, _, err = run_line(capsysbinary, f"grade {tmp_path} --csv {tmp_path}")
    assert code == 1
    assert "cannot be written" in err
