"""JupyterLab as `qllk lab` starts it: no question about news, no check for updates."""

import nbformat
import pytest
from open_notebook import OpenNotebook

pytestmark = pytest.mark.browser


def test_nobody_is_asked_about_news_and_nothing_is_looked_up(page, server):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    OpenNotebook(page, server, "quiet.ipynb", [nbformat.v4.new_code_cell("1")])
    page.wait_for_timeout(5000)  # both would come as soon as the page stands
    assert page.locator(".Toastify__toast").count() == 0, page.locator(".Toastify__toast").all()
    assert not [url for url in asked if "/lab/api/news" in url or "/lab/api/update" in url]
