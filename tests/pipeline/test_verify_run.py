"""`minillm verify` on the finished run: nothing differs, and a planted change in each kind of file is found.

Each change is made in a copy of the run.  `rewritten` ones also have the file's own hash right, as somebody
would leave it who writes the file with a program.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm.files import RECORD, sha256, write_json
from minillm.verify.command import verify
from minillm.verify.findings import Findings
from minillm.verify.metrics import check_metrics
from minillm.verify.published import check_published
from minillm.verify.records import check_records
from minillm.verify.run_folder import Run

KD, SEQKD = "tiny-student/kd/tiny-teacher/seed10", "tiny-student/seqkd/tiny-teacher/seed10"
TEST = "embedded-test"
ANSWERS = f"generations/{KD}/{TEST}.jsonl"
META = f"generations/{KD}/{TEST}.meta.json"
ROUGE = f"metrics/rouge/{KD}/{TEST}.json"
DATA = "data/embedded/training"


@pytest.fixture
def run(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run where it was made, next to the published numbers."""
    shutil.copytree(finished.run, tmp_path / "results/tiny", symlinks=True)
    (tmp_path / "config").symlink_to(finished.folder / "config")
    monkeypatch.chdir(tmp_path)
    return Path("results/tiny")


def command(finished: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minillm", "verify", "results/tiny", *arguments],
        cwd=finished.folder,
        env=finished.environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_nothing_differs_in_an_untouched_run(finished: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.run.rglob("*")}
    found = command(finished, "--models")
    lines = found.stdout.splitlines()
    assert found.returncode == 0 and lines[-1] == "results/tiny: nothing differs", found.stdout + found.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished.run.rglob("*")}, "it only reads"
    checked = lines[0].removeprefix("checked: ").split(", ")
    assert {
        *("6 metrics of rouge", "6 metrics of lengths", "6 metrics of diversity", "6 metrics of judge"),
        *("6 metrics of reference_loss", "6 metrics of calibration", "5 metrics of exposure_bias"),
        *("9 model folders", "1 data folders", "6 generations", "1 samples", "1 test sets"),
    } <= set(checked)
    assert all(line.startswith("not checked: ") for line in lines[1:-1])
    assert not any("not recorded" in line for line in lines), "this version records everything"


def answer_edited(run: Path) -> None:
    """The time kept, and the score too."""
    path = run / ANSWERS
    times, lines = path.stat(), path.read_text().split("\n")
    row = json.loads(lines[3])
    lines[3] = json.dumps({**row, "response": row["response"] + "."}, ensure_ascii=False)
    path.write_text("\n".join(lines))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def answer_edited_and_recorded(run: Path) -> None:
    answer_edited(run)
    edited(run / META, content=sha256(run / ANSWERS))


def row_gone(run: Path) -> None:
    path = run / ANSWERS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def swapped(a: str, b: str) -> Callable[[Path], None]:
    def swap(run: Path) -> None:
        for suffix in ("", ".meta.json"):
            first, second = ((run / path).with_suffix(suffix) if suffix else run / path for path in (a, b))
            if first.exists():
                first.rename(run / "away")
                second.rename(first)
                (run / "away").rename(second)

    return swap


def edited(path: Path, **values: Any) -> None:
    """Rewritten with other values and the right hash of its own."""
    write_json(path, json.loads(path.read_text()) | values)


def in_text(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        text = (run / path).read_text()
        assert old in text
        (run / path).write_text(text.replace(old, new, 1))

    return edit


def rewritten(path: str, **values: Any) -> Callable[[Path], None]:
    return lambda run: edited(run / path, **values)


def one_bit(path: str) -> Callable[[Path], None]:
    def flip(run: Path) -> None:
        content = bytearray((run / path).read_bytes())
        content[-5] ^= 1
        (run / path).write_bytes(content)

    return flip


def cell(run: Path) -> None:
    path = run / "tables/main.md"
    text = path.read_text()
    number = next(word for word in text.split() if word.replace(".", "").isdigit() and "." in word)
    path.write_text(text.replace(number, f"{float(number) + 0.1:.1f}", 1))


def other_settings(run: Path) -> None:
    path = run / f"models/{KD}/provenance.json"
    record = json.loads(path.read_text())
    record["settings"]["training"]["lr"] = 0.5
    write_json(path, record)


MODEL = f"models/{KD}"
CHANGES = {
    "answer edited, time kept": (check_records, answer_edited, ANSWERS),
    "answer edited and recorded": (check_records, answer_edited_and_recorded, ANSWERS),
    "row gone": (check_records, row_gone, ANSWERS),
    "generations swapped": (check_records, swapped(ANSWERS, ANSWERS.replace("/kd/", "/seqkd/")), ANSWERS),
    "generations gone": (check_records, lambda run: (run / ANSWERS).unlink(), ANSWERS),
    "meta file": (check_records, in_text(META, '"temperature": 1.0', '"temperature": 0.9'), META),
    "meta file rewritten": (check_records, rewritten(META, precision="bf16"), ANSWERS),
    "metric's mean": (check_records, in_text(ROUGE, '"mean": ', '"mean": 1'), ROUGE),
    "metric's mean rewritten": (check_metrics, rewritten(ROUGE, mean=50.0), ROUGE),
    "per seed": (check_metrics, rewritten(ROUGE, per_seed={"10": 1.0, "20": 2.0}), ROUGE),
    "metric gone": (check_metrics, lambda run: (run / ROUGE).unlink(), ROUGE),
    "table's cell": (check_published, cell, "tables/main.md"),
    "list of results": (check_published, one_bit("index.md"), "index.md"),
    "another table's": (check_published, in_text("tables/table5.csv", "10", "11"), "tables/table5.csv"),
    "metrics.csv": (check_published, in_text("metrics.csv", "rouge,", "rouge,1"), "metrics.csv"),
    "figure": (check_records, one_bit("figures/figure6.png"), "figures/figure6.png"),
    "weights of one bit": (check_records, one_bit(f"{MODEL}/model.safetensors"), MODEL),
    "models swapped": (check_records, swapped(MODEL, f"models/{SEQKD}"), MODEL),
    "provenance": (check_records, in_text(f"{MODEL}/provenance.json", '"seed": 10', '"seed": 11'), MODEL),
    "settings in provenance": (check_records, other_settings, MODEL),
    "inputs in provenance": (
        check_records,
        rewritten(f"{MODEL}/provenance.json", inputs={"base": "0"}),
        MODEL,
    ),
    "training's log": (check_records, in_text(f"{MODEL}/metrics.jsonl", '"step": 1', '"step": 2'), MODEL),
    "settings of a training": (
        check_records,
        in_text("configs/kd/tiny-student/tiny-teacher/10.json", '"lr": 0.002', '"lr": 0.003'),
        MODEL,
    ),
    "settings of sampling": (
        check_records,
        in_text("configs/generate.json", '"temperature": 1.0', '"temperature": 0.9'),
        ANSWERS,
    ),
    "settings of a metric": (
        check_metrics,
        in_text("configs/diversity.json", '"ngram": 2', '"ngram": 3'),
        f"metrics/diversity/{KD}/{TEST}.json",
    ),
    "settings file damaged": (
        check_records,
        in_text("configs/generate.json", "{", ""),
        "configs/generate.json",
    ),
    "data's tokenizer": (
        check_records,
        in_text(f"{DATA}/tokenizer/tokenizer.json", '"content": "<|endoftext|>"', '"content": "<|end|>"'),
        DATA,
    ),
    "its settings": (
        check_records,
        lambda run: edited(run / f"{DATA}/tokenizer/tokenizer_config.json"),
        DATA,
    ),
    "training rows": (check_records, one_bit(f"{DATA}/train.tokens.npy"), DATA),
    "test set": (
        check_records,
        in_text(f"data/embedded/tests/{TEST}.jsonl", '"references": ["', '"references": ["a'),
        f"data/embedded/tests/{TEST}.jsonl",
    ),
    "teacher's answers": (
        check_records,
        in_text("data/embedded/pseudo/tiny-teacher.jsonl", '"response": "', '"response": "a'),
        "data/embedded/pseudo/tiny-teacher.jsonl",
    ),
    "samples": (
        check_records,
        in_text(f"samples/tiny-teacher/{TEST}.jsonl", "[[", "[[1, "),
        f"samples/tiny-teacher/{TEST}.jsonl",
    ),
    "metric that needs a model": (
        lambda run, findings: check_metrics(run, findings, True),
        rewritten(f"metrics/reference_loss/{KD}/{TEST}.json", mean=1.0),
        f"metrics/reference_loss/{KD}/{TEST}.json",
    ),
}


@pytest.mark.parametrize(("check", "change", "where"), CHANGES.values(), ids=CHANGES)
def test_a_planted_change_is_found(run: Path, check: Any, change: Callable[[Path], Any], where: str) -> None:
    change(run)
    findings = Findings(run)
    if check is check_metrics:
        check_metrics(Run(run), findings, False)
    else:
        check(Run(run), findings)
    assert any(line.startswith(f"{where}: ") for line in findings.differences), findings.differences
    assert all("\n" not in line for line in findings.differences)


def test_a_run_of_an_earlier_version_is_opened(run: Path) -> None:
    """Without the records that it could not write: what it has is compared, and the rest is said."""
    for path in run.rglob("*.json"):
        if RECORD in path.read_text():
            record = json.loads(path.read_text())
            for key in (RECORD, "files", "settings_sha256", "sources_sha256", "data"):
                if key != "settings_sha256" or path.name != "provenance.json":
                    record.pop(key, None)
            if path.name.endswith(".meta.json"):
                record.pop("content")
            path.write_text(json.dumps(record, indent=1) + "\n")
    (run / "data/embedded/pseudo/tiny-teacher.meta.json").unlink()
    findings = verify(run)
    assert findings.differences == []
    unchecked = {what for (what, why) in findings.unchecked if "not recorded" in why}
    assert {"values of JSON files", "generations", "single files of folders"} <= unchecked
    answer_edited(run)
    assert any(line.startswith(f"{ANSWERS}: ") for line in verify(run).differences)


def test_results_of_another_configuration_are_left_out(run: Path) -> None:
    """A variant that is not trained any more, whose teacher has changed since."""
    for kind in ("models", "generations", "metrics/rouge"):
        shutil.copytree(run / kind / KD, run / kind / KD.replace("/kd/", "/earlier/"))
    findings = verify(run)
    assert findings.differences == []
    left = {what for what, why in findings.unchecked if why == "of another configuration"}
    assert left == {"settings and inputs of models", "generations", "metrics of rouge"}


def test_the_command_says_what_differs_and_fails(finished: Any, tmp_path: Path) -> None:
    path = finished.run / META
    text, times = path.read_text(), path.stat()
    edited(path, precision="bf16")
    try:
        found = command(finished)
    finally:
        path.write_text(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert found.returncode == 1
    assert found.stdout.splitlines()[0].startswith(f"{ANSWERS}: settings of generate: recorded ")
    assert found.stdout.splitlines()[-1].endswith("difference") or "differences" in found.stdout


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from minillm.cli import main

    assert main(["verify", str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err
