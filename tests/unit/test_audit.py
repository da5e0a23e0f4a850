"""`make audit`: every finding has an answer, and one without is seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parents[1] / "audit.py"
spec = importlib.util.spec_from_file_location("audit", AUDIT)
assert spec and spec.loader
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def test_every_finding_has_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bandit", reason="bandit is not installed here")
    assert audit.main() == 0, capsys.readouterr().out


def test_a_finding_without_an_answer_is_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [("B602", "minillm/plan.py", 7, "subprocess call with shell=True identified")]
    monkeypatch.setattr(audit, "findings", lambda: new)
    assert audit.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "minillm/plan.py:7: B602: subprocess call with shell=True identified"
    assert "tests/audit.yaml: B404: nothing is found in minillm/plan.py any more; remove it there" in said
