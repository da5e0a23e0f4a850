"""CONTRIBUTING's recipe for a measurement, followed in a copy of a finished run."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from recipe import follow


@pytest.fixture(scope="module")
def followed(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "repo"
    shutil.copytree(finished.folder, folder, symlinks=True)
    touched = follow(folder)
    return type(finished)(folder, finished.python), touched


def planned(checkout):
    """Rule -> number of jobs that a dry run plans."""
    output = checkout.snakemake("-n", "--quiet", "rules").stdout
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}


def test_few_files_are_touched_and_in_order(followed):
    checkout, touched = followed
    assert len(touched) <= 5 and "minillm/config/stages.py" in touched
    for check in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, *touched[:2]], cwd=checkout.folder, check=True)


def test_it_is_planned_and_nothing_else_again_and_its_numbers_are_in_the_table(followed):
    checkout, _ = followed
    jobs = planned(checkout)
    generations = sorted((checkout.run / "generations").rglob("*.jsonl"))
    # the measurement; the table of all, and the checklist; the page, which names what each measurement needs
    assert jobs.pop("word_count") == len(generations) and jobs.pop("total") and jobs.pop("all") == 1
    assert set(jobs) <= {"metrics", "settings", "checklist", "index", "page", "report"}, jobs
    done = checkout.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = pd.read_csv(checkout.run / "metrics.csv")
    counted = table[(table.metric == "word_count") & table.sampling_seed.isna()]
    assert len(counted) == len(generations)
    rows = [json.loads(line) for line in generations[0].read_text().splitlines()]
    mean = sum(len(row["response"].split()) for row in rows) / len(rows)
    weights = generations[0].relative_to(checkout.run / "generations").with_suffix(".json")
    row = counted[counted.source == f"metrics/word_count/{weights}"]
    assert (
        len(row) == 1
        and row.value.item() == pytest.approx(mean)
        and row.n.item() == len({row["id"] for row in rows})
    )
