"""Open the lessons in JupyterLab: those of a clone where they are, those of a wheel in a copy."""

from __future__ import annotations

import filecmp
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .. import __version__
from ..files import user_path, write_atomically
from ..folders import CLONE, PACKAGE, learner_folder, provide_home

_LOOPBACK_ONLY = "--ServerApp.ip=127.0.0.1"


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `open_lab`; those that are not known here are JupyterLab's."""
    parser.epilog = "Further options go to JupyterLab, for example --no-browser or --port 9000."
    parser.add_argument("--copy-to", metavar="DIR", help="copy the lessons to DIR, and open that")
    parse = parser.parse_known_args

    def pass_on(arguments=None, namespace=None):
        found, found.rest = parse(arguments, namespace)
        return found, []

    parser.parse_known_args = pass_on


def open_lab(args: Namespace) -> None:
    """Start JupyterLab on the lessons, for this machine only, until the user ends it."""
    from jupyterlab.labapp import LabApp

    provide_home()
    folder = notebooks_folder(args.copy_to)
    # The settings in `labconfig` are defaults that users may change: no news, no update check.
    settings = [str(Path(__file__).parent), os.environ.get("JUPYTER_CONFIG_PATH")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, settings))
    LabApp.launch_instance([_LOOPBACK_ONLY, *args.rest, str(folder / "00_lab.ipynb")])


def notebooks_folder(copy_to: str | None = None) -> Path:
    """The folder of the lessons to open: the clone's, or a copy, which is made here.

    Raises   ValueError when `copy_to` is a file
    """
    if CLONE and copy_to is None:
        return CLONE / "notebooks"
    if copy_to is None:
        folder = learner_folder() / f"notebooks-{__version__}"
    else:
        folder = user_path(copy_to).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the lessons can be copied to a folder only, and {folder} is a file")
    changed = _copy((CLONE or PACKAGE) / "notebooks", folder)
    print(f"The lessons are in {folder}")
    if changed:
        print(
            f"Not overwritten, because they differ from the installed ones: {', '.join(changed)}. "
            "For fresh copies: qllk lab --copy-to NEW_FOLDER"
        )
    return folder


def _copy(source: Path, folder: Path) -> list[str]:
    """Copy what is missing; the names of the files that are there and differ."""
    changed = []
    for path in sorted([*source.glob("*.*"), *source.glob("images/*.*")]):
        copy = folder / path.relative_to(source)
        if not os.path.lexists(copy):
            write_atomically(copy, path.read_bytes())
        elif not (copy.is_file() and filecmp.cmp(path, copy, shallow=False)):
            changed.append(copy.name)
    return changed
