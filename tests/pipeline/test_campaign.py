"""Some faults of the campaign (`make faults`), so that the campaign itself keeps working."""

import dataclasses
from pathlib import Path

import pytest
from faults import Base, attempt
from faults_checkout import Checkout, contents
from faults_stages import ANSWERS, STAGES

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
CONFIG = "tests/config/tiny.yaml"


@pytest.fixture
def base(finished):
    checkout = Checkout(finished.folder, [CONFIG], finished.python)
    return Base(checkout, contents(finished.run), 0)


@pytest.mark.parametrize(
    ("number", "kind", "name", "how"),
    [
        (1, "kill of a stage", "sft", "exact"),
        (1, "two Snakemakes", "rouge", "exact"),
        (1, "damaged result", ANSWERS, "stated"),
        # No room for the log either.
        (9, "full disk", "metrics.csv", "stated"),
    ],
)
def test_a_fault_ends_well(base, tmp_path, number, kind, name, how):
    record = attempt(number, kind, name, 0, base, tmp_path / "case")
    if record["how"] == "skipped":
        pytest.skip(record["seen"])
    assert record["how"] == how, record


def test_a_wrong_byte_fails(base, tmp_path):
    made = STAGES["rouge"].outputs[0]
    wrong = dataclasses.replace(base, expected=base.expected | {made: "of other bytes"})
    record = attempt(1, "kill of a stage", "rouge", 0, wrong, tmp_path / "case")
    assert record["how"] == "failed" and record["seen"] == f"1 files: {made} differs"
