"""A real JupyterLab on a free port, and a headless Chromium that may talk to nothing else."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from open_notebook import PATIENCE

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A JupyterLab server with its own folders, token and port."""

    def __init__(self, folder: Path):
        self.folder, self.work = folder, folder / "work"
        self.port, self.token = free_port(), secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.process = self._start()

    def _start(self):
        places = ("CONFIG", "DATA", "RUNTIME")
        env = os.environ | {f"JUPYTER_{name}_DIR": str(self.folder / name) for name in places}
        env |= {
            "JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"),
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_TOKEN": self.token,
            "QLLK_FAST": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "qllk", "lab", "--no-browser", "--allow-root"]
        command += ["--copy-to", str(self.work), f"--ServerApp.port={self.port}"]
        command += ["--ServerApp.port_retries=0"]
        command += ["--LabApp.expose_app_in_browser=True"]  # for its themes
        command += ["--KernelManager.transport=ipc"] if os.name != "nt" else []
        with self.log.open("w") as log:
            return subprocess.Popen(command, env=env, cwd=self.folder, stdout=log, stderr=log)

    def ask(self, path, method="GET", token=None):
        """Status and JSON of one request to the server; an empty token sends none."""
        token = self.token if token is None else token
        headers = {"Authorization": f"token {token}"} if token else {}
        request = urllib.request.Request(self.url + path, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body = answer.read()
                return answer.status, json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            return error.code, None

    def wait_until_up(self):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                return self.ask("/api/status")
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.2)
        raise TimeoutError(self.log.read_text())

    def end_kernels(self):
        """Kernels outlive their page, and a training run in one would slow the next test."""
        for kind in ("sessions", "kernels"):
            for row in self.ask(f"/api/{kind}")[1]:
                self.ask(f"/api/{kind}/{row['id']}", "DELETE")

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("jupyter"))
    try:
        server.wait_until_up()
        yield server
    finally:
        server.end()


@pytest.fixture(scope="session")
def chromium():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        message = "no Chromium here; install it, for example `apt-get install chromium`"
        (pytest.fail if os.environ.get("QLLK_REQUIRE_BROWSER") == "1" else pytest.skip)(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """The folder for screenshots: $QLLK_SCREENSHOTS, or a temporary one."""
    folder = os.environ.get("QLLK_SCREENSHOTS")
    folder = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(chromium, server, pictures, request):
    """A page that fails its test on any console error and any request to another host."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1200})
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    faults = []

    def only_here(route):
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            return route.continue_()
        faults.append(f"request to {route.request.url}")
        return route.abort()

    def on_console(message):
        if message.type == "error":
            faults.append(f"console: {message.text}")

    page.route("**/*", only_here)
    page.on("console", on_console)
    page.on("pageerror", lambda error: faults.append(f"page: {error}"))
    page.faults = faults
    yield page
    page.screenshot(path=pictures / f"{request.node.name}-end.png")
    context.close()
    server.end_kernels()
    assert not faults, faults
