"""The lab in a real browser: every control is used, and only what the page shows counts."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from open_notebook import THREADS, OpenNotebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "00_lab.ipynb"
CHOSEN = """for name, control in panel.controls.items():
    print(name, "is", getattr(control, "label", control.value))
print("end")"""
FULL_SIZE = "import os\n\nos.environ['QLLK_FAST'] = '0'\n"
BUSY = "import time\nfor _ in range(10_000):\n    time.sleep(0.01)"


class Lab(OpenNotebook):
    """The panel as a person sees it."""

    def __init__(self, page, server, name, cells, before=""):
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        first = next(cell for cell in notebook.cells if "panel = lab()" in cell.source)
        first.source = before + first.source
        extra = [nbformat.v4.new_code_cell(source) for source in (*cells, CHOSEN)]
        super().__init__(page, server, name, [notebook.cells[0], first, *extra])
        self.last_cell = len(extra)
        self.run_cell(0)
        self.wait_for(lambda: self.state)

    @property
    def text(self):
        panel = self.page.locator(".q-lab")
        return panel.first.inner_text() if panel.count() else "(no panel)"

    @property
    def state(self):
        chip = self.page.locator(".q-chip")
        return chip.first.inner_text() if chip.count() else ""

    @property
    def step(self):
        found = re.search(r"step\s+([\d,]+)\s+of", self.text)
        return int(found.group(1).replace(",", "")) if found else -1

    @property
    def loss(self):
        return float(re.search(r"training loss\s+([\d.]+)", self.text).group(1))

    @property
    def place(self):
        return re.search(r"running on\s+(.+)", self.text).group(1)

    def press(self, name):
        self.page.locator(f"button.q-{name}:enabled").click()

    def choose(self, name, label):
        self.page.locator(f".q-{name} select").select_option(label=label)
        self.wait_until_known(name, label)

    def fill(self, name, value):
        field = self.page.locator(f".q-{name} input")
        field.fill(value)
        field.press("Enter")
        self.wait_until_known(name, value)

    def wait_until_known(self, name, value):
        """Wait until the kernel knows the value. Each widget reports to the kernel separately, so a
        button pressed at once could overtake the choice.
        """
        self.wait_for(lambda: f"{name} is {value}" in self.printed(self.last_cell))

    def wait_state(self, *states):
        self.wait_for(lambda: self.state in states)

    def wait_steps(self, more):
        goal = self.step + more
        self.wait_for(lambda: self.step >= goal)

    def wait_note(self, pattern):
        notes = self.page.locator(".q-notes")
        self.wait_for(lambda: re.search(pattern, notes.inner_text()))

    def picture(self, folder, name):
        self.inspect(".q-lab", folder / f"{name}.png")


@pytest.fixture
def open_lab(page, server, request):
    return lambda *cells: Lab(page, server, f"{request.node.name}.ipynb", cells)


def test_every_control_does_what_it_says(open_lab, pictures):
    lab = open_lab(THREADS)
    lab.wait_for(lambda: lab.step == 8)
    assert lab.state == "idle"
    lab.picture(pictures, "1-first-picture")

    lab.press("start")
    lab.wait_steps(20)
    assert lab.state == "running"

    lab.press("pause")
    lab.wait_state("paused")
    at_rest = lab.wait_for(lambda: settled(lab))
    lab.fill("lr", "0.002")
    lab.wait_note("lr 0.002: takes effect with the next step")
    assert lab.step == at_rest
    lab.press("pause")  # now called Resume
    lab.wait_note("lr is now 0.002")
    lab.fill("batch", "16")  # so that one step is like the next
    lab.wait_note("batch is now 16")

    lab.wait_steps(3)
    before = lab.loss
    lab.choose("precision", "bfloat16")
    lab.press("switch")
    lab.wait_for(lambda: lab.place == "cpu bfloat16")
    lab.wait_steps(10)
    assert lab.loss < before + 0.5  # it may have improved since; a broken curve jumps upwards
    lab.picture(pictures, "2-switched")
    lab.choose("precision", "float32")
    lab.press("switch")
    lab.wait_for(lambda: lab.place == "cpu float32")

    lab.press("save")
    lab.wait_note("saved to 'runs/lab.safetensors'")
    lab.wait_steps(10)
    lab.press("load")
    lab.wait_note("loaded 'runs/lab.safetensors'")
    lab.wait_steps(5)
    lab.fill("path", "runs/none.safetensors")
    lab.press("load")
    lab.wait_note("cannot load 'runs/none.safetensors'.*no checkpoint")
    lab.wait_steps(5)

    lab.press("stop")
    lab.wait_state("stopped")
    lab.wait_until_no_thread(1)
    lab.picture(pictures, "3-stopped")
    lab.press("reset")
    lab.wait_state("idle")
    assert lab.step == 0

    lab.choose("model", "qllk-2-local")
    lab.choose("corpus", "noise (task)")
    lab.press("start")
    lab.wait_for(lambda: "qllk-2-local on noise" in lab.text)
    lab.wait_steps(5)
    lab.press("reset")
    lab.wait_state("idle")
    lab.wait_until_no_thread(1)


def test_models_that_fill_gaps_are_trained_and_shown_too(open_lab, pictures):
    lab = open_lab(THREADS)
    for model, mark in {"bert-nano": "▁", "t5-nano": "⟨0⟩"}.items():
        lab.choose("model", model)
        lab.press("start")
        lab.wait_for(lambda: f"{model} on stdlib" in lab.text)  # noqa: B023
        lab.wait_steps(50)
        assert mark in lab.page.locator(".q-sample pre").inner_text()
        lab.picture(pictures, f"5-{model}")
        lab.press("reset")
        lab.wait_state("idle")
    lab.wait_until_no_thread(1)


def settled(lab):
    """The step, or 0 as long as it still changes."""
    seen = lab.step
    lab.page.wait_for_timeout(500)
    return seen if lab.step == seen else 0


@pytest.mark.skipif("QLLK_LAB_PICTURE" not in os.environ, reason="`make lab-picture` runs it")
def test_a_minute_of_training_is_the_picture_of_the_front_page(page, server):
    page.set_viewport_size({"width": 1920, "height": 1800})
    lab = Lab(page, server, "lab-picture.ipynb", [], before=FULL_SIZE)
    lab.press("start")
    page.wait_for_timeout(40_000)
    lab.choose("precision", "bfloat16")
    lab.press("switch")
    lab.wait_for(lambda: lab.place == "cpu bfloat16")
    page.wait_for_timeout(20_000)
    panel = page.locator(".q-lab")
    panel.evaluate("panel => panel.style.zoom = 1.5")
    panel.screenshot(path=os.environ["QLLK_LAB_PICTURE"])


def test_errors_are_shown_with_their_reason(open_lab, pictures):
    lab = open_lab(THREADS)
    lab.choose("corpus", "a file or folder …")
    lab.fill("file", "<b>missing</b>.txt")
    lab.press("start")
    lab.wait_state("failed")
    lab.wait_note(r"no corpus '<b>missing</b>\.txt': give a file")
    lab.fill("lr", "-1")
    lab.choose("corpus", "stdlib")
    lab.press("start")
    lab.wait_note("lr must be a number above 0")
    lab.fill("lr", "100000")
    lab.press("start")
    lab.wait_state("paused")
    lab.wait_note("lower learning rate")
    lab.picture(pictures, "4-diverged")
    lab.fill("lr", "0.001")
    lab.press("pause")
    lab.wait_steps(3)
    lab.fill("batch", "0")
    lab.wait_note("batch must be a whole number above 0")
    lab.picture(pictures, "6-more-notes-than-fit")
    lab.press("stop")
    lab.wait_until_no_thread(1)


def test_a_saved_page_that_is_reloaded_shows_the_running_training(open_lab):
    lab = open_lab(THREADS)
    lab.press("start")
    lab.wait_steps(5)
    lab.save_notebook()
    before = lab.step
    lab.page.reload()
    lab.wait_for(lambda: lab.step > before)
    lab.press("stop")
    lab.wait_state("stopped")


def test_interrupt_is_not_stop_and_running_the_cell_again_replaces_the_run(open_lab):
    lab = open_lab(THREADS, BUSY)
    lab.press("start")
    lab.wait_steps(5)
    lab.run_cell(2)
    lab.wait_steps(10)  # another cell is busy; training continues
    lab.page.keyboard.press("Escape")
    lab.page.keyboard.press("i")
    lab.page.keyboard.press("i")
    lab.wait_for(lambda: "KeyboardInterrupt" in lab.output(2))
    lab.wait_steps(10)
    assert lab.state == "running"
    lab.run_cell(0)
    lab.wait_for(lambda: lab.state == "idle" and lab.step == 8)
    lab.wait_until_no_thread(1)


def test_the_guard_notices_other_hosts_and_console_errors(page):
    with page.expect_event("console"):
        page.set_content("<img src='http://example.org/x.png'>")
    assert page.faults[0] == "request to http://example.org/x.png"
    assert any(fault.startswith("console: ") for fault in page.faults)
    page.faults.clear()


@pytest.mark.parametrize("path", ["/api/contents", "/api/kernels", "/api/sessions"])
def test_nothing_is_served_without_the_token(server, path):
    assert server.ask(path)[0] == 200
    assert server.ask(path, token="")[0] == 403
    assert server.ask(path, token="wrong")[0] == 403
