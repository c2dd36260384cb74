"""A ledger: claims that were published, each with its test, and the verdict of the test.

A test looks at `seen`, whatever evidence its lesson has gathered, so it can be tried on a model for
which the right verdict is known before it judges the published one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from ..probes import measure
from ..study.figures import Bars

HOLDS, IN_PART, DOES_NOT = "holds", "holds in part", "does not hold"
UNTESTED = "not tested here"
VERDICTS = (HOLDS, IN_PART, DOES_NOT, UNTESTED)

Evidence = TypeVar("Evidence")


class Claim(NamedTuple):
    """What was published, and how it is tested."""

    id: str
    says: str
    test: Callable[[Evidence], tuple[str, str]]  # -> verdict, what was measured


class Finding(NamedTuple):
    """A claim with its verdict, and the numbers behind it."""

    id: str
    says: str
    verdict: str
    measured: str


def judge(claims: Iterable[Claim], seen: Evidence) -> list[Finding]:
    """Test every claim on this machine."""
    with measure.single_thread():
        return [Finding(claim.id, claim.says, *claim.test(seen)) for claim in claims]


def holds_if(true: bool, otherwise: str = DOES_NOT) -> str:
    return HOLDS if true else otherwise


def verdict_lines(found: list[Finding]) -> list[str]:
    return [f"{f.id:5} {f.says:41} {f.verdict}" for f in found]


def verdict_bars(found: list[Finding]) -> Bars:
    """How many claims got which verdict."""
    got = [finding.verdict for finding in found]
    return Bars(f"{len(found)} published claims", {v: got.count(v) for v in VERDICTS}, "claims")
