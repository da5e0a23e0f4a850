"""What `make soak` calls bounded, on made-up readings."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "campaigns" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", PATH)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def readings(soak, memory, descriptors=lambda step: 15):
    return [
        soak.Reading(step, memory(step), descriptors(step), 1.0, 0.1 * step) for step in range(100, 2001, 100)
    ]


@pytest.mark.parametrize(("per_hundred", "held"), [(0.0, True), (0.9, True), (1.1, False)])
def test_memory(soak, capsys, per_hundred, held):
    """What it takes before step 500 does not count."""
    found = readings(soak, lambda step: 600 + 90 * (step > 300) + per_hundred * step / 100)
    assert soak.report(found, 2000) is held
    text = capsys.readouterr().out
    assert (
        f"resident {per_hundred:+.3f} MB, disk +0.000 MB, time of a step +0.00 ms; descriptors [15]" in text
    )
    assert text.strip().endswith("yes" if held else "NO")


def test_descriptors(soak, capsys):
    assert not soak.report(readings(soak, lambda _: 600.0, lambda step: 15 + step // 1000), 2000)
