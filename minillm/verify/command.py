"""`minillm verify RUN`: whether a finished run is what its records say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from minillm.errors import UserError
from minillm.verify.findings import Findings
from minillm.verify.run_folder import Run


def verify(folder: Path, models: bool = False) -> Findings:
    """What differs in results/<run>, `folder`; nothing in it is changed.

    Compared are hashes with what they are of, settings files with the settings that results record, metrics
    with what their stages compute again from the generations (with `models` also those that need a model, on
    the CPU), tables and metrics.csv with what the metrics give.  Raises UserError if there is no such run.
    """
    if not (folder / "configs").is_dir():
        raise UserError(f"{folder}: no run here (no folder configs); name one like results/demo")
    # Before torch is imported.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from minillm.verify.metrics import check_metrics
    from minillm.verify.published import check_published
    from minillm.verify.records import check_records

    run, findings = Run(folder), Findings(folder)
    for what, check in (
        ("records", lambda: check_records(run, findings)),
        ("metrics", lambda: check_metrics(run, findings, models)),
        ("tables and figures", lambda: check_published(run, findings)),
    ):
        print(f"{what} ...", file=sys.stderr, flush=True)
        check()
    return findings


def main(folder: Path, models: bool) -> int:
    """Print each difference on a line, then a summary; 1 if anything differs, else 0."""
    findings = verify(folder, models)
    print("\n".join([*findings.differences, *findings.summary()]))
    return 1 if findings.differences else 0
