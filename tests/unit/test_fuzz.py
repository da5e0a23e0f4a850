"""A thousand cases of `make fuzz`."""

from __future__ import annotations

import pytest

from tests.campaigns.fuzz import campaign


@pytest.mark.slow
def test_damaged_files_end_in_one_line_or_a_right_result() -> None:
    report = campaign(1000, start=25, seconds=300)
    assert not report.failures, "\n".join(report.failures[:5])
    counts = report.counts
    assert counts["cases"] >= 1000
    assert 3 * counts["parsed"] >= counts["cases"]
    assert counts["line"] >= 300 and counts["right"] >= 100
    assert counts["line"] + counts["right"] == counts["cases"]
