"""A notebook open in JupyterLab, as a person sees it."""

import nbformat
from readable import THEMES, axe_faults, pale_texts, set_theme

PATIENCE = 180  # seconds that one wait may take, for a busy machine
THREADS = """import threading
print("threads", [t.name for t in threading.enumerate() if t.name.startswith("qllk")], "end")"""


class OpenNotebook:
    """A notebook of the given cells, opened in the page; code cells are numbered from 0."""

    def __init__(self, page, server, name, cells):
        self.page, self.server = page, server
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(notebook, server.work / name)
        page.goto(f"{server.url}/lab/tree/{name}?reset&token={server.token}")
        self.page.wait_for_function(
            "() => /\\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText ?? '')"
        )

    def cell(self, number):
        return self.page.locator(".jp-CodeCell").nth(number)

    def run_cell(self, number):
        self.cell(number).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")

    def output(self, number):
        found = self.cell(number).locator(".jp-OutputArea-output")
        return found.last.inner_text() if found.count() else ""

    def printed(self, number):
        self.run_cell(number)
        self.wait_for(lambda: "end" in self.output(number))
        return self.output(number)

    def wait_until_no_thread(self, number):
        """Wait until cell `number`, which holds THREADS, lists no thread of qllk."""
        self.wait_for(lambda: "threads [] end" in self.printed(number))

    def save_notebook(self):
        self.page.keyboard.press("Control+s")
        self.page.wait_for_selector(".jp-mod-dirty", state="detached")

    def wait_for(self, condition, seconds=PATIENCE):
        """Poll until the condition is true; return its value."""
        for _ in range(seconds * 10):
            if found := condition():
                return found
            self.page.wait_for_timeout(100)
        raise AssertionError(f"waited in vain; the page shows: {self.text}")

    @property
    def text(self):
        return self.page.locator(".jp-Notebook").inner_text()

    def assert_readable(self, selector, theme):
        """Every text of this part contrasts with its background in a theme, which stays."""
        set_theme(self.page, theme)
        assert not (pale := pale_texts(self.page, selector)), (theme, pale)

    def inspect(self, selector, path):
        """A picture of this part in both themes, where axe-core finds no fault either."""
        for theme in THEMES:
            self.assert_readable(selector, theme)
            shot = path.with_stem(f"{path.stem}-{theme.split()[-1].lower()}")
            self.page.locator(selector).first.screenshot(path=shot)
            assert not (faults := axe_faults(self.page, selector)), (theme, faults)
