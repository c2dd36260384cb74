"""Whether a part of a page can be read and used: axe-core's rules, and the contrast of its texts.

axe-core looks at names, roles and labels, and at the contrast of HTML. It does not look at the
contrast of SVG text, which our pictures consist of; `pale_texts` does.
"""

from axe_playwright_python.sync_playwright import Axe

THEMES = ("JupyterLab Dark", "JupyterLab Light")  # the last one stays
_FORBIDDEN = ("serious", "critical")  # impacts, as axe-core names them

_SET_THEME = """async theme => {
    await window.jupyterapp.commands.execute("apputils:change-theme", {theme});
    while (document.body.dataset.jpThemeName !== theme || document.querySelector("[id*=splash]"))
        await new Promise(resolve => setTimeout(resolve, 20));
}"""

# The texts with less contrast than WCAG 2 asks for (success criterion 1.4.3). The background of a
# text is what its ancestors paint, and in a picture the rectangles that were drawn below it.
_PALE_TEXTS = r"""root => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    function rgba(colour, opacity) {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255 * opacity];
    }
    const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
    const known = new Map([[null, {opacity: 1, paint: [255, 255, 255]}]]);
    function painted(node) {  // by the node and its ancestors
        if (!known.has(node)) {
            const style = getComputedStyle(node), above = painted(node.parentElement);
            const opacity = above.opacity * style.opacity;
            const paint = over(rgba(style.backgroundColor, opacity), above.paint);
            known.set(node, {opacity, paint});
        }
        return known.get(node);
    }
    function background(node, box) {
        let {paint} = painted(node);
        const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
        for (const rect of node.closest("svg")?.querySelectorAll("rect") ?? []) {
            const {left, right, top, bottom} = rect.getBoundingClientRect();
            const below = node.compareDocumentPosition(rect) & Node.DOCUMENT_POSITION_PRECEDING;
            if (!below || x < left || x > right || y < top || y > bottom) continue;
            const style = getComputedStyle(rect);
            paint = over(rgba(style.fill, style.fillOpacity * painted(rect).opacity), paint);
        }
        return paint;
    }
    function ink(node, style) {
        const [r, g, b, a] = rgba(node.closest("svg") ? style.fill : style.color,
                                  painted(node).opacity);
        const factor = /brightness\((.+?)\)/.exec(style.filter)?.[1] ?? 1;
        return [...[r, g, b].map(c => Math.min(255, c * factor)), a];
    }
    function luminance(colour) {
        const [r, g, b] = colour.map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }
    function contrast(one, other) {
        const [low, high] = [one, other].map(luminance).sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    }
    function fault(node, box, words) {
        if (!words.trim() || !box.width || !node.checkVisibility() || node.closest(":disabled"))
            return [];
        const style = getComputedStyle(node), size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const below = background(node, box);
        const found = contrast(over(ink(node, style), below), below);
        return found >= (large ? 3 : 4.5) ? [] : [`${found.toFixed(2)}: ${words.trim()}`];
    }
    const found = [], range = document.createRange();
    const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const {currentNode: text, currentNode: {parentElement: node}} = texts;
        if (node.closest("style, option")) continue;
        range.selectNodeContents(text);
        found.push(...fault(node, range.getBoundingClientRect(), text.data));
    }
    for (const field of root.querySelectorAll("input[type=text], input[type=number], select"))
        found.push(...fault(field, field.getBoundingClientRect(), field.value));
    return found;
}"""


def set_theme(page, name):
    page.evaluate(_SET_THEME, name)


def pale_texts(page, selector):
    """Every text with too little contrast to its background, after its ratio."""
    return page.locator(selector).first.evaluate(_PALE_TEXTS)


def axe_faults(page, selector):
    """What axe-core finds serious or critical there, a sentence for each element."""
    return [
        f"{rule['id']}: {rule['help']}: {node['html']}"
        for rule in Axe().run(page, selector).response["violations"]
        if rule["impact"] in _FORBIDDEN
        for node in rule["nodes"]
    ]
