"""Commands for experiments: spec, train --keep and --init-from, runs, rerun, evaluate, torchrun."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import test_against_transformers as theirs_of
from command_helpers import run_line

import qllk
from qllk.model import register
from qllk.model.mixers import MIXERS
from qllk.presets import PRESETS
from qllk.spec import Spec
from qllk.study import judge
from qllk.training import checkpoint

TINY = "--batch 4 --window 32 --validate-every 4 --validate-bytes 200 --precision float32"
TEXT = "--corpus task:markov:20000:0"
TRAIN = f"train --model gpt-nano {TEXT} {TINY}"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "_SAMPLE", 40)
    monkeypatch.setattr(register, "_FILES", [])
    yield tmp_path
    MIXERS.pop("fading", None)


def kept(here):
    return sorted(path.name for path in (here / "runs").iterdir())


def test_a_spec_is_printed_changed_and_trained(capsys, here):
    code, out, _ = run_line(capsys, "spec gpt-nano")
    assert code == 0
    assert Spec.from_json(out) == PRESETS["gpt-nano"]
    (here / "mine.json").write_text(json.dumps(json.loads(out) | {"layers": 1, "d_model": 32}))
    assert run_line(capsys, "spec mine.json")[0] == 0
    code, out, _ = run_line(capsys, f"train --model mine.json {TEXT} {TINY} --steps 2 --json")
    assert code == 0
    assert json.loads(out)["model"] == "a spec of your own"


def test_runs_are_kept_listed_compared_plotted_and_repeated(capsys, here):
    assert run_line(capsys, f"{TRAIN} --steps 5 --keep")[0] == 0
    assert run_line(capsys, f"{TRAIN} --steps 5 --keep --lr 1e-3")[0] == 0
    one, other = kept(here)
    code, out, _ = run_line(capsys, "runs --plot runs.png")
    assert code == 0
    assert one in out
    assert other in out
    assert (here / "runs.png").stat().st_size > 5000
    code, out, _ = run_line(capsys, f"runs --compare {one} {other}")
    assert "recipe lr: 0.006 -> 0.001" in out
    code, out, _ = run_line(capsys, f"rerun runs/{one}")
    assert (code, out.strip()) == (
        0,
        f"{one}: all 5 losses and the weights are the same, bit for bit",
    )
    facts = json.loads((here / "runs" / one / "run.json").read_text())
    facts["each_step"][2][1] += 1e-6
    (here / "runs" / one / "run.json").write_text(json.dumps(facts))
    code, _, err = run_line(capsys, f"rerun runs/{one}")
    assert code == 1
    assert f"{one} is another run now: the loss of step 3 was" in err


def test_a_run_that_is_interrupted_is_kept_as_far_as_it_came(capsys, here, monkeypatch):
    from qllk.training import trainer

    begun = trainer.Trainer.__next__

    def interrupted(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return begun(self)

    monkeypatch.setattr(trainer.Trainer, "__next__", interrupted)
    assert run_line(capsys, f"{TRAIN} --steps 9 --keep")[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(here)
    (name,) = kept(here)
    assert "interrupted after step 3" in run_line(capsys, "runs")[1]
    assert run_line(capsys, f"rerun runs/{name}")[0] == 0


def test_a_folder_without_runs_is_named(capsys):
    code, _, err = run_line(capsys, "runs nowhere")
    assert code == 1
    assert "no kept runs in 'nowhere'; `train --keep` keeps one there" in err
    assert run_line(capsys, "rerun nowhere")[0] == 1


def test_a_checkpoint_is_evaluated_on_its_own_text_and_on_another(capsys):
    assert run_line(capsys, f"{TRAIN} --steps 5 --save a.safetensors")[0] == 0
    code, out, _ = run_line(capsys, "evaluate a.safetensors")
    assert code == 0
    assert "| as a stream, cut every 4,096 ids | 1,999 |" in out
    code, out, _ = run_line(capsys, "evaluate a.safetensors --corpus task:copy:20000:0 --json")
    facts = json.loads(out)
    assert facts["corpus"] == "copy"
    assert facts["stream"]["perplexity"] > 1
    assert run_line(capsys, "evaluate b.safetensors")[0] == 1


def test_a_run_starts_from_the_weights_of_another_or_of_a_published_model(capsys, here):
    assert run_line(capsys, f"{TRAIN} --steps 40 --save a.safetensors")[0] == 0
    theirs_of.RIVALS["GPT-2"].theirs().save_pretrained(here / "gpt2")
    train = f"train {TEXT} {TINY} --steps 1 --json"
    first = json.loads(run_line(capsys, f"{train} --model gpt-nano")[1])["nats_per_byte"]
    code, out, _ = run_line(capsys, f"{train} --init-from a.safetensors")
    assert code == 0
    assert json.loads(out)["nats_per_byte"] < first - 0.5
    code, out, _ = run_line(capsys, f"{train} --init-from gpt2")
    assert code == 0
    assert json.loads(out)["parameters"] > 10_000
    code, _, err = run_line(capsys, f"{train} --init-from gpt2 --model gpt-nano")
    assert code == 1
    assert "--init-from and --model exclude each other" in err


# ---------------------------------------------------------------- torchrun


def torchrun(world, line):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    return subprocess.Popen(
        [*command, "-m", "qllk", *line.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qllk-3-nano", "gpt-nano"])
def test_a_run_of_two_processes_goes_on_in_four_and_then_in_one(model, capsys, here):
    begin = f"train --model {model} {TEXT} {TINY} --steps 4 --json --save "
    legs = [(2, begin + "{}"), (4, "train --resume {} --steps 8 --json"), (1, "train --resume {} ")]
    legs[2] = (1, legs[2][1] + "--steps 12 --json")
    for world, line in legs:
        ended = torchrun(world, line.format("several.safetensors")) if world > 1 else None
        if ended:
            out, err = ended.communicate(timeout=200)
            assert ended.returncode == 0, err[-2000:]
            assert err.count("this run is saved to") == 1
        else:
            out = run_line(capsys, line.format("several.safetensors"))[1]
        alone = json.loads(run_line(capsys, line.format("alone.safetensors"))[1])
        found = json.loads(out)
        assert found["steps"] == alone["steps"]
        assert found["nats_per_byte"] == pytest.approx(alone["nats_per_byte"], abs=1e-5)


@pytest.mark.slow
def test_a_killed_process_ends_all_of_them_and_leaves_the_checkpoint_whole(here):
    file = here / "a.safetensors"
    started = torchrun(2, f"{TRAIN} --steps 100000 --save-every 0.1 --save {file}")
    until = time.monotonic() + 120
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.2)
    workers = psutil.Process(started.pid).children()
    workers.sort(key=lambda process: process.environ()["RANK"])
    time.sleep(0.5)
    workers[1].kill()
    _, err = started.communicate(timeout=120)
    assert started.returncode != 0
    assert "another process of this run has ended" in err or "qllk: interrupted" in err
    assert checkpoint.read(file).metadata["step"] > 0
    assert [path.name for path in here.iterdir()] == ["a.safetensors"]


# ---------------------------------------------------------------- a design of one's own

MIXER = """
import torch
from torch import nn
import qllk


class Fading(nn.Module):
    def __init__(self, d_model, positions=None, *, share=0.9):
        super().__init__()
        self.mix, self.share = nn.Linear(d_model, d_model), share

    def forward(self, x, state=None, mask=None):
        total, ys = torch.zeros_like(x[:, 0]) if state is None else state, []
        for step in self.mix(x).unbind(dim=1):
            total = self.share * total + step
            ys.append(total)
        return torch.stack(ys, dim=1), total


qllk.register("mixer", "fading", Fading)
"""
DESIGN = Spec(d_model=32, layers=2, mixers=(("conv", {"width": 3}), ("fading", {"share": 0.8})))


@pytest.mark.slow
def test_a_mixer_of_ones_own_keeps_the_laws_trains_races_and_is_resumed_and_repeated(capsys, here):
    (here / "fading.py").write_text(MIXER)
    (here / "mine.json").write_text(DESIGN.to_json())
    mine = "--parts fading.py"
    code, _, err = run_line(capsys, f"train --model mine.json {TEXT} {TINY} --steps 4")
    assert code == 1
    assert "unknown mixer 'fading'" in err
    train = f"{mine} train --model mine.json {TEXT} {TINY} --steps 4 --keep --save a.safetensors"
    assert run_line(capsys, train)[0] == 0
    assert qllk.probes.check_laws(MIXERS["fading"]).hold
    assert run_line(capsys, f"{mine} train --resume a.safetensors --steps 8")[0] == 0
    assert run_line(capsys, f"{mine} evaluate a.safetensors")[0] == 0
    assert "bit for bit" in run_line(capsys, f"{mine} rerun runs/{kept(here)[0]}")[1]
    race = "bench --entries mine.json qllk-3-nano --seconds 1 --lrs 0.01 --batches 2x64 --seeds 1"
    code, out, err = run_line(capsys, f"{mine} {race} {TEXT} --precision float32 --jobs 1")
    assert code == 0, err
    assert "| mine.json |" in out
    assert "| qllk-3-nano |" in out


def test_a_file_of_parts_that_is_not_there_is_named(capsys):
    code, _, err = run_line(capsys, "--parts nowhere.py presets")
    assert (code, err.strip()) == (1, "qllk: no file 'nowhere.py' with parts of your own")
