"""After a finished run on local files: one is edited, and exactly the jobs that depend on it are planned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CONFIG = "local.yaml"
ENDS = {"index", "page", "report"}
STUDENTS = ("small/sft/seed10", "small/minillm/big/seed10")
ALL = ("big/teacher", *STUDENTS)


def on_local_files(config: dict[str, Any]) -> None:
    """Every kind of local source: rows, text, tokenizer, models, a finished model, a task, a judge."""
    config["run"] = "local"
    config["training_seeds"] = [10]
    config["tokenizers"] = {"letters": {"source": "folder", "path": "mine/tokenizer"}}
    config["models"] = {
        "big": {"source": "folder", "path": "mine/big", "tokenizer": "letters"},
        "small": {"source": "gguf", "path": "mine/small.gguf", "tokenizer": "letters"},
    }
    sources = {
        "rows": "train.jsonl",
        "held": "dev.jsonl",
        "text": "corpus.txt",
        "easy": "$MINILLM_DATA/easy.jsonl",
    }
    config["datasets"] = {
        name: {"source": "folder", "path": path if path.startswith("$") else f"mine/{path}"}
        for name, path in sources.items()
    }
    config["datasets"]["hard"] = {"source": "hub", "path": "mine/hub"}
    config["datasets"]["task"] = {"source": "folder", "path": "package:mine_package/task.jsonl"}
    config["pairs"] = [{"teacher": "big", "students": ["small"]}]
    config["methods"] = ["sft", "minillm"]
    config["variants"], config["per_model"] = {}, {}
    config["checkpoints"] = {"big/teacher": {"source": "folder", "path": "mine/done", "tokenizer": "letters"}}
    config["calibration"] = {
        "tasks": {"task": {"dataset": "task", "prompt": "What?", "labels": {"a": " a", "b": " b"}}}
    }
    config["judge"] = {"kind": "transformers", "model": "mine/judge", "tests": ["easy"]}


def lay_out(root: Path) -> None:
    files = {
        "mine/tokenizer/tokenizer.json": "{}",
        "mine/tokenizer/README.md": "a tokenizer",
        "mine/big/config.json": "{}",
        "mine/big/model.safetensors": "weights",
        "mine/done/config.json": "{}",
        "mine/done/model.safetensors": "finished",
        "mine/small.gguf": "gguf",
        "mine/train.jsonl": "train",
        "mine/dev.jsonl": "dev",
        "mine/corpus.txt": "text",
        "mine/easy.jsonl": "easy",
        "mine/hub/data/test.jsonl": "hard",
        "mine/judge/config.json": "{}",
        "mine_package/__init__.py": "",
        "mine_package/task.jsonl": "task",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture(scope="module")
def local(checkout: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A copy of the checkout after a run on local files; stages compute nothing."""
    root = tmp_path_factory.mktemp("local") / "repo"
    shutil.copytree(checkout.root, root, ignore=shutil.ignore_patterns("results", ".snakemake"))
    copy = type(checkout)(root)
    lay_out(root)
    copy.write(CONFIG, on_local_files)
    before = os.environ.get("MINILLM_DATA")
    os.environ["MINILLM_DATA"] = str(root / "mine")
    copy.snakemake("--cores", "4", "--configfile", CONFIG, "--quiet", "--show-failed-logs")
    yield copy
    os.environ.pop("MINILLM_DATA")
    if before is not None:
        os.environ["MINILLM_DATA"] = before


@contextmanager
def edited(path: Path, text: str) -> Iterator[None]:
    before, times = path.read_text(), path.stat()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def rules_of(jobs: set[str]) -> set[str]:
    """Jobs without those of tables and figures, which follow from any result."""
    return {
        job
        for job in jobs
        if not job.startswith(
            ("publish_", "index", "page", "report", "table", "figure", "metrics", "curves", "checklist")
        )
    }


def evaluated(weights: tuple[str, ...], tests: tuple[str, ...] = ("easy", "hard")) -> set[str]:
    jobs = {f"{rule} weights={w} test={t}" for rule in ("generate", "rouge") for w in weights for t in tests}
    judged = {f"judge weights={w} judged=easy" for w in weights} if "easy" in tests else set()
    return jobs | judged


def calibrated(weights: tuple[str, ...]) -> set[str]:
    return {f"calibration weights={w} task=task" for w in weights}


MINILLM = "minillm student=small method=minillm teacher=big seed=10"
SFT = "sft student=small seed=10"
EVERYTHING = {
    "data tokenizer=letters",
    "base model=small",
    "checkpoint taken=big/teacher",
    SFT,
    MINILLM,
    *(f"testset tokenizer=letters test={test}" for test in ("easy", "hard")),
    *evaluated(ALL),
    *calibrated(ALL),
}
EXPECTED = {
    "mine/train.jsonl": {"local source=datasets/rows"} | EVERYTHING,
    "mine/dev.jsonl": {"local source=datasets/held"} | EVERYTHING,
    "mine/corpus.txt": {"local source=datasets/text"} | EVERYTHING,
    "mine/tokenizer/tokenizer.json": {"local source=tokenizers/letters"} | EVERYTHING,
    "mine/small.gguf": {"local source=models/small", "base model=small", SFT, MINILLM}
    | evaluated(STUDENTS)
    | calibrated(STUDENTS),
    "mine/done/model.safetensors": {
        "local source=checkpoints/big/teacher",
        "checkpoint taken=big/teacher",
        MINILLM,
    }
    | evaluated(("big/teacher", STUDENTS[1]))
    | calibrated(("big/teacher", STUDENTS[1])),
    "mine/easy.jsonl": {"local source=datasets/easy", "testset tokenizer=letters test=easy"}
    | evaluated(ALL, ("easy",)),
    "mine/hub/data/test.jsonl": {"local source=datasets/hard", "testset tokenizer=letters test=hard"}
    | evaluated(ALL, ("hard",)),
    "mine_package/task.jsonl": {"local source=datasets/task"} | calibrated(ALL),
    "mine/judge/config.json": {"local source=judge/model"} | {f"judge weights={w} judged=easy" for w in ALL},
    # Nothing is made of these: a finished teacher stands in the place of one from this base model.
    "mine/big/model.safetensors": set(),
    "mine/tokenizer/README.md": set(),
}


@pytest.mark.parametrize(("file", "jobs"), EXPECTED.items(), ids=EXPECTED)
def test_an_edited_file_runs_what_depends_on_it(local: Any, file: str, jobs: set[str]) -> None:
    with edited(local.root / file, "another text"):
        planned = local.planned(config=CONFIG)
    assert rules_of(planned) == jobs
    assert planned >= ENDS if jobs else not planned


def test_nothing_runs_for_untouched_files_a_new_time_or_a_disk_that_is_away(
    local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local.planned(config=CONFIG) == set()
    for path in (local.root / "mine").rglob("*"):
        os.utime(path)
    assert local.planned(config=CONFIG) == set()
    monkeypatch.delenv("MINILLM_DATA")
    (local.root / "mine").rename(local.root / "away")
    # The name of a hub's data set is a folder's only as long as there is one.
    shutil.copytree(local.root / "away/hub", local.root / "mine/hub")
    try:
        assert local.planned(config=CONFIG) == set()
    finally:
        shutil.rmtree(local.root / "mine")
        (local.root / "away").rename(local.root / "mine")


def test_a_run_from_before_is_accepted_by_touch(local: Any, tmp_path: Path) -> None:
    """A run that did not know its local files is planned again; two commands accept it as it is."""
    root = tmp_path / "repo"
    shutil.copytree(local.root, root, ignore=shutil.ignore_patterns("results", ".snakemake"))
    older, workflow = type(local)(root), root / "minillm/workflow/records.py"
    text = workflow.read_text()
    workflow.write_text(text.replace("if is_local(", "if False and is_local("))
    older.snakemake("--cores", "4", "--configfile", CONFIG, "--quiet", "--show-failed-logs")
    workflow.write_text(text)
    assert rules_of(older.planned(config=CONFIG)) >= {"local source=datasets/rows", "data tokenizer=letters"}
    for accept in (["--until", "local"], ["--touch"]):
        older.snakemake(*accept, "--cores", "1", "--configfile", CONFIG)
    assert older.planned(config=CONFIG) == set()
    with edited(root / "mine/train.jsonl", "another text"):
        assert "data tokenizer=letters" in older.planned(config=CONFIG)
