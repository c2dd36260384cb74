"""Keep the stored notebooks true:  python -m qllk.lab.notebooks refresh|check FILE...

refresh   run each notebook from the top and store what it printed, with counts 1…n; its last
          picture also goes to `images/`, for the front page of the course
check     refuse a notebook whose stored outputs nbval could not compare, or that holds a widget

A cell whose output is not compared carries the tag `nbval-ignore-output` and a second tag,
`because-…`, that says why. What a cell shows as a widget is never stored: a reopened notebook
could not show it.
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path

import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"
IGNORE, BECAUSE = "nbval-ignore-output", "because-"
COMPARED_SHARE = 0.5  # of the cells with output, at least
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def refresh(path: Path) -> None:
    """Run a notebook in its own folder and store its outputs, widgets left out.

    Raises   nbclient.exceptions.CellExecutionError when a cell fails; the file is then unchanged
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=600, resources=resources, store_widget_state=False)
    with tempfile.TemporaryDirectory() as nobody:  # a learner who has done nothing yet
        client.execute(env=os.environ | {"QLLK_HOME": nobody})
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not shows_widget(output)]
    notebook.metadata = nbformat.from_dict(METADATA)
    nbformat.write(notebook, path)
    if found := pictures(notebook):
        images = path.parent / "images"
        images.mkdir(exist_ok=True)
        (images / f"{path.stem}.png").write_bytes(found[-1])


def pictures(notebook) -> list[bytes]:
    """The PNGs that a notebook stores, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    stored = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    return [base64.b64decode(text) for text in stored]


def check(path: Path) -> list[str]:
    """What is wrong with a stored notebook, in sentences; nothing if it is right."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    wrong = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        wrong.append("it was not run once from the top: counts are not 1, 2, 3 …; refresh it")
    if "widgets" in notebook.metadata:
        wrong.append("it stores widget state; refresh it")
    for number, cell in enumerate(cells, 1):
        wrong += [f"code cell {number}: {fault}" for fault in cell_faults(cell)]
    telling = [cell for cell in cells if cell.outputs]
    compared = [cell for cell in telling if not ignored(cell)]
    if not telling or len(compared) < COMPARED_SHARE * len(telling):
        wrong.append(
            f"only {len(compared)} of {len(telling)} cells with output are compared; "
            "print rounded numbers that stay the same"
        )
    return wrong


def cell_faults(cell) -> list[str]:
    tags = cell.metadata.get("tags", [])
    reason = any(tag.startswith(BECAUSE) for tag in tags)
    faults = []
    if ignored(cell) != reason:
        faults.append(f"needs both tags or neither: {IGNORE!r} and a reason {BECAUSE + '…'!r}")
    if any(output.output_type == "error" for output in cell.outputs):
        faults.append("stores an error")
    if any(shows_widget(output) for output in cell.outputs):
        faults.append("stores a widget; refresh it")
    if any(place in str(cell.outputs) for place in (str(Path.home()), str(Path.cwd()))):
        faults.append("stores a path of this machine")
    return faults


def ignored(cell) -> bool:
    return IGNORE in cell.metadata.get("tags", [])


def shows_widget(output) -> bool:
    return WIDGET in output.get("data", {})


def main(arguments: list[str]) -> int:
    """0 if all is well."""
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
