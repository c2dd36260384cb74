"""Texts before they become ids: cleaned, judged by simple rules, and without copies.

    texts = [clean(text) for text in texts]
    texts = [text for text in texts if not find_faults(text)]
    copies = find_near_copies(texts)  # {position: the earlier position that it is a copy of}
    texts = [text for position, text in enumerate(texts) if position not in copies]

Do this before the texts are split: a held-out text whose copy was trained on has a loss that says
nothing about new texts.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable
from hashlib import sha256
from html.parser import HTMLParser
from typing import NamedTuple

from ..checks import check_positive, check_range

# ---------------------------------------------------------------- cleaning

_LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SPACES = re.compile(r"[^\S\n\t ]")  # of other widths, or that do not break
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
_EMPTY_LINES = re.compile(r"\n{4,}")
_NOT_SHOWN = {"script", "style"}
_BLOCKS = {
    *("address", "article", "blockquote", "br", "dd", "div", "dt", "footer", "form", "header"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "main", "nav", "ol", "p", "pre", "section"),
    *("table", "td", "th", "title", "tr", "ul"),
}


def clean(text: str) -> str:
    """The text in one way of writing: what looks the same becomes the same bytes.

    Unicode in form NFC, one kind of line end and of space, no control characters but tabs, no
    spaces at the ends of lines, no empty lines at either end and at most two elsewhere. Indentation
    stays. Cleaning twice changes nothing more.
    """
    text = unicodedata.normalize("NFC", text)
    text = _CONTROLS.sub("", _SPACES.sub(" ", _LINE_ENDS.sub("\n", text)))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return _EMPTY_LINES.sub("\n\n\n", unicodedata.normalize("NFC", text)).strip("\n")


def fix_encoding(text: str) -> str:
    """Undo a wrong decoding, such as "schÃ¶n" for "schön", by `ftfy`.

    Raises   ImportError when `ftfy` is not installed
    """
    try:
        import ftfy
    except ImportError as error:
        raise ImportError("this needs `ftfy`, which is not installed: pip install ftfy") from error
    return ftfy.fix_encoding(text)


class _Reader(HTMLParser):
    """Collects what a page shows: its text, with line ends where blocks begin and end."""

    def __init__(self):
        super().__init__()
        self.shown, self.hidden = [], False

    def handle_starttag(self, tag, attrs):
        self.hidden = tag in _NOT_SHOWN
        self.shown.append("\n" * (tag in _BLOCKS))

    def handle_endtag(self, tag):
        self.hidden = False
        self.shown.append("\n" * (tag in _BLOCKS))

    def handle_data(self, data):
        self.shown.append("" if self.hidden else data)


def strip_html(page: str) -> str:
    """The text of a page of HTML, without tags, comments, scripts and styles."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return "".join(reader.shown)


# ---------------------------------------------------------------- quality


class Rule(NamedTuple):
    """What is measured of a text, and between which bounds it must lie."""

    name: str
    measure: Callable[[str], float]
    least: float = 0.0
    most: float = float("inf")


_COMMON = {"the", "be", "to", "of", "and", "that", "have", "with"}
_BULLETS = ("•", "-", "*")


def _share(several: Iterable[bool]) -> float:
    several = list(several)
    return sum(several) / max(1, len(several))


def _lines(text):
    return [line.strip() for line in text.split("\n") if line.strip()]


def _mean_length(text):
    return sum(map(len, text.split())) / max(1, len(text.split()))


def _symbols(text):
    return sum(map(text.count, ("#", "...", "…"))) / max(1, len(text.split()))


def _with_a_letter(text):
    return _share(any(map(str.isalpha, word)) for word in text.split())


def _repeated(text):
    lines = _lines(text)
    return 1 - len(set(lines)) / max(1, len(lines))


def _bulleted(text):
    return _share(line.startswith(_BULLETS) for line in _lines(text))


def _cut_short(text):
    return _share(line.endswith(("...", "…")) for line in _lines(text))


# The rules of Gopher for English web pages, and one of C4. Source code breaks several of them.
RULES = (
    Rule("words", lambda text: len(text.split()), 50, 100_000),
    Rule("characters per word", _mean_length, 3, 10),
    Rule("symbols per word", _symbols, most=0.1),
    Rule("share of words with a letter", _with_a_letter, least=0.8),
    Rule("different common words", lambda text: len(_COMMON & set(text.lower().split())), least=2),
    Rule("share of repeated lines", _repeated, most=0.3),
    Rule("share of lines with a bullet", _bulleted, most=0.9),
    Rule("share of lines cut short", _cut_short, most=0.3),
    Rule("lorem ipsum", lambda text: text.lower().count("lorem ipsum"), most=0),
)


def find_faults(text: str, rules: Iterable[Rule] = RULES) -> dict[str, float]:
    """The rules that a text breaks, each with what was measured; {} for a good text.

    Paper    Gopher: Rae 2021, 2112.11446, appendix A.1; C4: Raffel 2019, 1910.10683, section 2.2
    """
    measured = ((rule, rule.measure(text)) for rule in rules)
    return {rule.name: n for rule, n in measured if not rule.least <= n <= rule.most}


# ---------------------------------------------------------------- copies

_HASHES = 128  # in a signature
_ERRORS = (0.1, 0.9)  # false candidates are cheap, since each is compared; a missed pair is lost


def find_copies(texts: Iterable[str]) -> dict[int, int]:
    """Texts that are equal to an earlier one: {position: the first position of the same text}.

    Cost     32 bytes of memory for each different text
    """
    first: dict[bytes, int] = {}
    found = {}
    for position, text in enumerate(texts):
        digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
        if (earlier := first.setdefault(digest, position)) < position:
            found[position] = earlier
    return found


def shingles(text: str, words: int = 5) -> set[str]:
    """All runs of so many neighbouring words, in lower case and without punctuation.

    A shorter text is a single run. A language that is written without spaces has too few words.
    """
    check_positive("shingles", words=words)
    found = re.findall(r"\w+", text.lower())
    return {" ".join(found[i : i + words]) for i in range(max(1, len(found) - words + 1))}


def jaccard(first: set, second: set) -> float:
    """The share of what is in both sets in what is in either: |A ∩ B| / |A ∪ B|."""
    return len(first & second) / len(first | second) if first | second else 1.0


def find_near_copies(
    texts: Iterable[str], similarity: float = 0.8, words: int = 5
) -> dict[int, int]:
    """Texts that share most of their shingles with an earlier one: {position: that position}.

    Signatures choose the candidates (MinHash with locality-sensitive hashing, by `datasketch`), and
    the sets of shingles decide. So nothing is found that is not similar enough; a pair barely above
    `similarity` may be missed. Copies of copies are compared with the text that stays.

    Cost     linear in the bytes of all texts; memory for the shingles of those that stay
    Paper    Broder 1997, On the resemblance and containment of documents; for training data: Lee
             2021, 2107.06499
    Raises   ImportError when `datasketch` is not installed
    """
    check_range("find_near_copies: similarity", similarity, int | float, 1.0)
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise ImportError(
            "this needs `datasketch`, which is not installed: pip install datasketch"
        ) from error
    index = MinHashLSH(threshold=similarity, num_perm=_HASHES, weights=_ERRORS)
    stay: dict[int, set[str]] = {}
    found = {}
    for position, text in enumerate(texts):
        pieces = shingles(text, words)
        signature = MinHash(num_perm=_HASHES)
        signature.update_batch([piece.encode("utf-8", "surrogatepass") for piece in pieces])
        near = (n for n in index.query(signature) if jaccard(pieces, stay[n]) >= similarity)
        if (earlier := min(near, default=None)) is None:
            index.insert(position, signature)
            stay[position] = pieces
        else:
            found[position] = earlier
    return found


# ---------------------------------------------------------------- augmentation


def drop_words(text: str, share: float, rng: random.Random) -> str:
    """Leave out each word with the probability `share`, a simple augmentation.

    What it returns is a near copy: split the texts first, and augment only those to train on.

    Paper    Wei 2019, 1901.11196
    """
    check_range("drop_words: share", share, int | float, 1.0)
    return re.sub(r"\S+\s?", lambda word: "" if rng.random() < share else word[0], text)
