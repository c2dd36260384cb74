"""`qllk doctor`: what it names, each finding with its cause and its cure."""

import json
import os
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from qllk import doctor
from qllk.__main__ import main


def told(find):
    return " | ".join(find())


def test_facts_and_findings_are_printed_and_the_same_as_json(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_findings", lambda: iter(["a cause; a cure"]))
    monkeypatch.setattr(doctor.devices, "fastest_precision", lambda name: "float32")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "to mend: a cause; a cure" in text
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["findings"] == ["a cause; a cure"]
    assert facts["learner"] == os.environ["QLLK_HOME"]
    for name in ("python", "torch", "qllk", "installed", "texts", "learner"):
        assert facts[name] in text


def test_where_all_is_well_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_findings", lambda: iter([]))
    main(["doctor"])
    assert capsys.readouterr().out.endswith("nothing to mend\n")


@pytest.mark.parametrize(
    ("needed", "found", "finding"),
    [
        (["numpy>=1.26,<3"], "3.1", "numpy is 3.1; pip install 'numpy<3,>=1.26'"),
        (["pooch>=1.8,<2"], None, "pooch is missing; pip install 'pooch<2,>=1.8'"),
        (["numpy>=1.26"], "2.0", ""),
        (["torch>=2.6"], "2.13.0+cpu", ""),
        (['ruff>=0.9; extra == "dev"'], None, ""),
    ],
)
def test_a_package_of_a_wrong_version_is_named(monkeypatch, needed, found, finding):
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    monkeypatch.setattr(doctor, "_version", lambda name: found)
    assert told(doctor._packages) == finding


def test_a_package_that_was_never_installed_has_no_list_of_requirements(monkeypatch):
    missing = Mock(side_effect=doctor.metadata.PackageNotFoundError)
    monkeypatch.setattr(doctor.metadata, "requires", missing)
    assert told(doctor._packages) == ""


@pytest.mark.parametrize(
    ("threads", "cores", "chosen", "finding"),
    [
        (64, 2.0, None, "may use 2 cores, which is slower than 2 threads; set OMP_NUM_THREADS=2"),
        (2, 1.5, None, ""),
        (1, 4, "1", "torch computes in one thread on 4 cores; unset OMP_NUM_THREADS"),
        (1, 4, None, ""),
        (4, 4, "4", ""),
    ],
)
def test_threads_that_do_not_fit_the_cores_are_named(monkeypatch, threads, cores, chosen, finding):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(doctor, "_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert finding in told(doctor._threads)
    assert bool(finding) == bool(told(doctor._threads))


def test_the_cores_are_those_of_a_containers_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_CONTAINER", tmp_path)
    unlimited = doctor._cores()
    assert unlimited >= 1
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert doctor._cores() == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor._cores() == unlimited


def test_too_little_memory_is_named(monkeypatch):
    monkeypatch.setattr(doctor.devices, "free_bytes", lambda device: 1 << 30)
    assert "only 1.0 GiB of memory are free; close other programs" in told(doctor._memory)
    monkeypatch.setattr(doctor.devices, "free_bytes", lambda device: 8 << 30)
    assert told(doctor._memory) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_limits_of_the_shell_are_named_with_the_option_that_raises_them(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY,) * 2)
    assert told(doctor._limits) == ""
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (100, 100))
    for option in ("-v", "-f", "-n"):
        assert f"limited to 100; raise it with `ulimit {option}" in told(doctor._limits)


def test_a_full_disk_is_named_with_the_variable_that_moves_the_folder(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 << 20))
    found = told(doctor._disk)
    assert "only 5 MiB of disk are free in" in found
    assert "set QLLK_CACHE to" in found
    assert "set QLLK_HOME to" in found


def test_a_program_that_is_missing_is_named_with_what_needs_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler, so --compile does not work; install one" in told(doctor._programs)
    assert "no Chromium, so `make test` leaves" in told(doctor._programs)
    monkeypatch.setattr(doctor, "CLONE", None)
    assert "Chromium" not in told(doctor._programs)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert told(doctor._programs) == ""


def test_a_kernel_of_another_python_is_named(monkeypatch, tmp_path):
    other = tmp_path / "python"
    other.touch()
    spec = SimpleNamespace(argv=[str(other)])
    monkeypatch.setattr(doctor.KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    assert f"notebooks run in {other}, not in this Python" in told(doctor._kernel)
    assert "jupyter kernelspec remove python3" in told(doctor._kernel)
    spec.argv = [sys.executable]
    assert told(doctor._kernel) == ""
    spec.argv = ["python"]
    assert told(doctor._kernel) == ""


def test_a_kernel_whose_python_was_deleted_is_named(monkeypatch, tmp_path):
    spec = SimpleNamespace(argv=[str(tmp_path / "gone")])
    monkeypatch.setattr(doctor.KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    assert "jupyter kernelspec remove python3" in told(doctor._kernel)


def test_a_user_without_a_home_folder_is_told_what_jupyter_needs_it_for(monkeypatch):
    homeless = Mock(side_effect=RuntimeError("Could not determine home directory."))
    monkeypatch.setattr(doctor.KernelSpecManager, "get_kernel_spec", homeless)
    assert "this user has no home folder, in which Jupyter" in told(doctor._kernel)


def test_an_output_that_lacks_characters_is_named(monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="cp1252"))
    assert "encoded as cp1252" in told(doctor._encoding)
    assert "set PYTHONUTF8=1" in told(doctor._encoding)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="UTF-8"))
    assert told(doctor._encoding) == ""
