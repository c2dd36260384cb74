"""Keep the stored notebooks true:  python -m qllk.lab.notebooks refresh|check FILE...

refresh   run each notebook from the top and store its outputs, with execution counts 1 … n; its
          last picture is also saved to `images/`, for the front page of the course
check     refuse a notebook whose stored outputs nbval could not compare, or that stores a widget

A cell whose output is not compared carries the tag `nbval-ignore-output` and a second tag,
`because-…`, that gives the reason. Widgets are never stored: a reopened notebook could not show
them.
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path

import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"
_IGNORE, _BECAUSE = "nbval-ignore-output", "because-"
_COMPARED_SHARE = 0.5  # of the cells with output, at least
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def refresh(path: Path) -> None:
    """Run a notebook in its own folder and store its outputs without widgets.

    Raises   nbclient.exceptions.CellExecutionError when a cell fails; the file is then unchanged
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(_METADATA)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=600, resources=resources, store_widget_state=False)
    with tempfile.TemporaryDirectory() as home:  # of a learner who has done nothing yet
        client.execute(env=os.environ | {"QLLK_HOME": home})
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_widget(output)]
    notebook.metadata = nbformat.from_dict(_METADATA)
    nbformat.write(notebook, path)
    if found := find_pictures(notebook):
        images = path.parent / "images"
        images.mkdir(exist_ok=True)
        (images / f"{path.stem}.png").write_bytes(found[-1])


def find_pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    """The PNGs that a notebook stores, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    stored = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    return [base64.b64decode(text) for text in stored]


def check(path: Path) -> list[str]:
    """What is wrong with a stored notebook, one sentence each; empty if nothing is."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    wrong = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        wrong.append("it was not run once from the top: its counts are not 1, 2, 3 …; refresh it")
    if "widgets" in notebook.metadata:
        wrong.append("it stores widget state; refresh it")
    for number, cell in enumerate(cells, 1):
        wrong += [f"code cell {number}: {fault}" for fault in _cell_faults(cell)]
    shown = [cell for cell in cells if cell.outputs]
    compared = [cell for cell in shown if not _is_ignored(cell)]
    if not shown or len(compared) < _COMPARED_SHARE * len(shown):
        wrong.append(
            f"only {len(compared)} of {len(shown)} cells with output are compared; "
            "print rounded numbers, which stay the same"
        )
    return wrong


def _cell_faults(cell) -> list[str]:
    tags = cell.metadata.get("tags", [])
    reason = any(tag.startswith(_BECAUSE) for tag in tags)
    faults = []
    if _is_ignored(cell) != reason:
        faults.append(f"needs both tags or neither: {_IGNORE!r} and a reason {_BECAUSE + '…'!r}")
    if any(output.output_type == "error" for output in cell.outputs):
        faults.append("stores an error")
    if any(_is_widget(output) for output in cell.outputs):
        faults.append("stores a widget; refresh it")
    places = {os.path.expanduser("~"), os.getcwd()} - {"~", "/"}  # of users without a home
    if any(place in str(cell.outputs) for place in places):
        faults.append("stores a path of this machine")
    return faults


def _is_ignored(cell) -> bool:
    return _IGNORE in cell.metadata.get("tags", [])


def _is_widget(output) -> bool:
    return WIDGET in output.get("data", {})


def main(arguments: list[str]) -> int:
    """Run the command line; 0 if all is well, 1 if a notebook is not, 2 for a wrong call."""
    if len(arguments) < 2 or arguments[0] not in ("refresh", "check"):
        print(__doc__)
        return 2
    verb, paths = arguments[0], [Path(name) for name in arguments[1:]]
    if verb == "refresh":
        for path in paths:
            refresh(path)
    faults = [f"{path}: {fault}" for path in paths for fault in check(path)]
    print("\n".join(faults) or f"{len(paths)} notebooks are in order")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
