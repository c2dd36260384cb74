"""Whole command lines: odd ones, and plain ones in unusual interpreters and encodings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
LINES = Path(__file__).with_name("command_lines.py")
MODES = {
    "without assertions": (["-O"], {}),
    "without docstrings": (["-OO"], {}),
    "warnings are errors": (["-W", "error"], {}),
    "the C locale": ([], {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}),
    "the C locale without UTF-8": (["-X", "utf8=0"], {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}),
    "the encoding cp1252": ([], {"PYTHONIOENCODING": "cp1252"}),
}


def run(folder, kind, options=(), changes=()):
    return subprocess.run(
        [sys.executable, *options, str(LINES), kind],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(changes),
        capture_output=True,
        timeout=1500,
    )


@pytest.mark.timeout(1600)
def test_odd_values_of_every_option_end_with_a_result_or_with_one_sentence(tmp_path):
    ran = run(tmp_path, "odd")
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["count"] > 300


@pytest.mark.parametrize("mode", MODES)
def test_every_command_works_in_unusual_settings(tmp_path, mode):
    ran = run(tmp_path, "plain", *MODES[mode])
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")[-2000:]
    assert b"bits per byte" in ran.stdout
