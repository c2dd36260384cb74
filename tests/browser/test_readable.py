"""The instruments that judge our pages, tried where the right verdict is known."""

import nbformat
import pytest
from open_notebook import OpenNotebook
from readable import axe_faults, pale_texts

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

SHOWN = """import ipywidgets
box = ipywidgets.VBox([ipywidgets.{}])
box.add_class("q-explore")
box"""
RECT = '<rect width="90" height="20" fill="{}" fill-opacity="0.5"/>'


NAMELESS = {
    "label": "IntText()",
    "select-name": "Dropdown(options=[1, 2])",
    "button-name": "Button(icon='play')",
    "aria-input-field-name": "SelectionSlider(options=[1, 2], description='n')",
    "svg-img-alt": 'HTML(\'<svg role="img" width="9" height="9"></svg>\')',
}


@pytest.mark.parametrize("rule", NAMELESS)
def test_a_control_or_picture_without_a_name_is_found(page, server, rule):
    cell = nbformat.v4.new_code_cell(SHOWN.format(NAMELESS[rule]))
    opened = OpenNotebook(page, server, f"{rule}.ipynb", [cell])
    opened.run_cell(0)
    page.wait_for_selector(".q-explore > *")
    assert [fault.partition(":")[0] for fault in axe_faults(page, ".q-explore")] == [rule]


CONTRASTS = {
    '<p style="color: #767676">x': False,
    '<p style="color: #777777">x': True,
    '<p style="color: #777777; font-size: 24px">x': False,
    '<div style="opacity: 0.5"><p>x': True,
    '<p style="background: #777777">x': False,
    '<p style="background: #747474">x': True,
    '<input type="text" value="x" style="color: #777777">': True,
    '<button disabled style="color: #777777">x': False,
    '<svg><text y="15" fill="#767676">x</text></svg>': False,
    '<svg><text y="15" fill="#777777">x</text></svg>': True,
    '<svg><text y="15" fill="#777777" style="filter: brightness(0.9)">x</text></svg>': False,
    f'<svg>{RECT.format("#000000")}<text y="15">x</text></svg>': False,
    f'<svg>{RECT.format("#0000ff")}<text y="15" opacity="0.6">x</text></svg>': True,
    f'<svg><text y="15" opacity="0.6">x</text>{RECT.format("#0000ff")}</svg>': False,
}


def test_text_is_pale_below_a_contrast_of_four_and_a_half(page):
    for html, pale in CONTRASTS.items():
        page.set_content(f'<body style="background: white; color: black">{html}')
        assert bool(pale_texts(page, "body")) == pale, html
