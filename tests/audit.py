"""`make audit`: bandit over the code, and an answer in audit.yaml to each of its findings."""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("minillm", "workflow", "benchmarks", "slurm")


def findings() -> list[tuple[str, str, int, str]]:
    """Test, file, line and text of each of bandit's findings."""
    command = [sys.executable, "-m", "bandit", "--quiet", "--format", "json", "--recursive", *FOLDERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(done.stderr.strip() or f"bandit ended with {done.returncode}")
    result = json.loads(done.stdout)
    if result["errors"]:
        sys.exit(f"bandit cannot read {result['errors'][0]['filename']}: {result['errors'][0]['reason']}")
    return [(r["test_id"], r["filename"], r["line_number"], r["issue_text"]) for r in result["results"]]


def main() -> int:
    """Print findings without an answer and answers without a finding; 1 if there is one of the former."""
    answers = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    left = {(answer["test"], file) for answer in answers if answer["why"] for file in answer["files"]}
    used, found, unanswered = set(), findings(), 0
    for test, file, line, text in found:
        fits = {(other, pattern) for other, pattern in left if other == test and fnmatch(file, pattern)}
        used |= fits
        if not fits:
            unanswered += 1
            print(f"{file}:{line}: {test}: {text}")
    for test, file in sorted(left - used):
        print(f"tests/audit.yaml: {test}: nothing is found in {file} any more; remove it there")
    print(f"bandit: {len(found)} findings, {unanswered} of them without an answer in tests/audit.yaml")
    return 1 if unanswered else 0


if __name__ == "__main__":
    sys.exit(main())
