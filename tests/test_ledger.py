"""The ledger: a claim, its test, its verdict."""

from qllk.lab import ledger


def test_each_claim_is_judged_by_its_own_test():
    claims = (
        ledger.Claim("A1", "it is small", lambda seen: (ledger.holds_if(seen < 10), f"{seen}")),
        ledger.Claim("A2", "it is one", lambda seen: (ledger.holds_if(seen == 1), f"{seen}")),
        ledger.Claim("A3", "it is fast", lambda seen: (ledger.UNTESTED, "takes a GPU")),
    )
    found = ledger.judge(claims, 3)
    assert [finding.verdict for finding in found] == ["holds", "does not hold", "not tested here"]
    assert ledger.verdict_lines(found)[0].split() == ["A1", "it", "is", "small", "holds"]
    values = {"holds": 1, "holds in part": 0, "does not hold": 1, "not tested here": 1}
    assert ledger.verdict_bars(found).values == values
