"""What a run says to the items of two checklists: every item once, every answer from a file that is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_up_run import REPO, config, make, put

from minillm.config import layout
from minillm.config.derive import canonical, stage_settings
from minillm.errors import UserError
from minillm.files import write_json
from minillm.publish.checklist import SECTIONS, UNANSWERED, run_stage

REFORMS = {
    f"{module}{'abcdefg'[i]}" for module, n in enumerate((3, 5, 7, 3, 6, 3, 3, 2), 1) for i in range(n)
}
NEURIPS = {str(number) for number in range(1, 17)}
# Answers that are about the project or about what nothing records.
NO_FILE = (
    "tables can be made again without a model",
    "instructions: README.md",
    "rows that are alike",
    "whether ",
    "inputs and outputs",
)
CARD = {
    "train": {
        "source": "folder /home/me/rows.jsonl", "read": 60, "kept": 50, "dropped": {"too long": 10},
        "duplicates": {"count": 3, "first_ids": [1]}, "rows_sha256": "1" * 64, "response_cut": 4,
    },
    "dev": {
        "source": "embedded dev", "read": 8, "kept": 8, "dropped": {}, "duplicates": {"count": 0},
        "overlap_with_train": 0, "rows_sha256": "2" * 64,
    },
    "corpus": {"source": "embedded text", "documents": 7, "tokens": 900, "text_sha256": "3" * 64},
    "max_prompt": 64, "max_response": 32,
}  # fmt: skip
TEST_CARD = {
    "source": "embedded test", "read": 12, "kept": 12, "dropped": {}, "duplicates": {"count": 1},
    "overlap_with_train": 0, "overlap_with_dev": {"count": 2}, "content": "4" * 64,
}  # fmt: skip
GRID = {
    "method": "minillm", "student": "base", "teacher": "xl", "rule": "dev_rouge", "share": 0.25,
    "chosen": {"candidate": "lr0.001", "lr": 0.001, "length": 1.0, "value": 20.0}, "edge": "lr 0.001 is low",
    "candidates": [{"candidate": "lr0.001", "lost": ""}, {"candidate": "lr0.1", "lost": "diverged"}],
}  # fmt: skip
BASE = {"source": "hub", "path": "openai/some", "revision": "abc", "licence": "mit", "training": {"lr": 0.5}}


def begun(folder: Path) -> Path:
    """A run of which only the settings are there."""
    settings = canonical(stage_settings(config(small=True), "metrics"))
    put(folder, layout.settings_file("metrics"), settings)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = begun(tmp_path_factory.mktemp("checked") / "results/plan")
    make(folder, config(small=True))
    records: dict[str, Any] = {
        "data/letters/training/card.json": CARD,
        **{f"data/letters/tests/{test}.card.json": TEST_CARD for test in ("dolly", "sni")},
        **{
            f"generations/{weights}/dolly.meta.json": {"rows": 12, "seeds": [10, 20]}
            for weights in ("xl/teacher", "base/sft/seed10", "base/minillm/xl/seed10")
        },
        "grid/minillm/base/xl.json": GRID,
        "grid/minillm/base/xl/lr0.1.json": {"history": []},
        "hub/models/xl.json": {"kind": "model", "path": "openai/some", "commit": "c0ffee"},
        "local/datasets/dolly.json": {"path": "/home/me/dolly", "content": "5" * 64},
        "configs/data/letters.json": {"seed": 77},
        "models/xl/base/provenance.json": {"settings": {"stage": "base", "model": BASE}, "git": "unknown"},
        # Of another configuration.
        "models/other/sft/seed10/provenance.json": {"git": "another", "processor": "another"},
        "models/xl/teacher/README.md": "card",
    }
    for path, record in records.items():
        put(folder, path, record)
    return folder


def written(run: Path, out: Path) -> list[str]:
    run_stage(run_folder=run, out=out)
    return out.read_text().splitlines()


def answers(lines: list[str]) -> list[str]:
    """Lines with an answer, those of the last section apart."""
    return [line for line in lines[: lines.index("## What a run cannot answer")] if line.startswith("- ")]


def test_every_item_is_answered_or_said_to_be_unanswerable() -> None:
    answered = {"REFORMS": [], "NeurIPS": []}
    for _, reforms, neurips, _ in SECTIONS:
        answered["REFORMS"] += reforms
        answered["NeurIPS"] += map(str, neurips)
    for names, why in UNANSWERED:
        form, _, numbers = names.partition(" ")
        answered[form] += numbers.split(", ")
        assert why
    assert len(REFORMS) == 32
    assert sorted(answered["REFORMS"]) == sorted(REFORMS)
    assert sorted(answered["NeurIPS"]) == sorted(NEURIPS)


def test_answers_are_what_the_files_say(run: Path, tmp_path: Path) -> None:
    lines = written(run, tmp_path / "checklist.md")
    of_models = "(`models/**/provenance.json`)"
    for line in (
        f"- git revision of the code: 2306085 (3 models), unknown (1 model) {of_models}",
        f"- processor: x86\\_64 AVX2 (3 models), not recorded (1 model) {of_models}",
        f"- processes of a training: 2 (3 models), not recorded (1 model) {of_models}",
        f"- peak memory of a training on its GPU: at most 0.9 GB {of_models}",
        # BENCHMARK: 2 hours of wall time, 3 of the processor, 2 GB; a base of each model of every pair.
        "| base | 2 | 4.000 | 6.000 | 2.0 |",
        "| all | 8 | 16.000 | 24.000 | 2.0 |",
        "- energy: not recorded",
        # 3 trainings of an hour on two processes, whose stages these records do not name.
        f"- GPU hours of trainings (wall hours x processes): 6.000 (not recorded 6.000) {of_models}",
        "- train: folder .../rows.jsonl; 50 rows of 60 read, dropped: 10 too long; SHA-256 " + "1" * 64
        + " (`data/letters/training/card.json`)",
        "- corpus: embedded text; 7 documents, 900 tokens; SHA-256 " + "3" * 64
        + " (`data/letters/training/card.json`)",
        "- prompts have at most 64 tokens, responses 32; training responses cut there: 4 "
        "(`data/letters/training/card.json`)",
        "- model openai/some of the hub: commit c0ffee (`hub/models/xl.json`)",
        f"- local files .../dolly: content {'5' * 64} (`local/datasets/dolly.json`)",
        "- licences of the data: not recorded",
        "- dolly: 12 prompts x 2 sampling seeds = 24 responses of each of 3 models "
        "(`generations/**/dolly.meta.json`)",
        "- sni: number of prompts not recorded",
        "- train: 3 rows equal to an earlier row (`data/letters/training/card.json`)",
        "- dolly: 0 rows that are training rows, 2 rows that are dev rows, 1 row equal to an earlier row "
        "(`data/letters/tests/dolly.card.json`)",
        "- `xl/base` (GPT-2 1.5B): [openai/some](https://huggingface.co/openai/some) at revision `abc`; "
        "licence: mit (`models/xl/base/provenance.json`)",
        "- training seeds: 10; sweeps have the first (`configs/metrics.json`)",
        "- seed of the data: 77 (`configs/data/*.json`)",
        f"- learning rate: 0.001 (3 models), 0.5 (1 model) {of_models}",
        "- grid of minillm, base: 2 candidates (lr0.001, lr0.1) by dev\\_rouge, on 0.25 of the training "
        "each; chosen lr0.001; lost: lr0.1; lr 0.001 is low (`grid/minillm/base/xl.json`)",
        "- 1 model without a choice among checkpoints (`models/**/provenance.json`)",
        "- judge openai some-judge: 3 scores of a model on a test set (`metrics/judge/**/*.json`)",
        "- people: 1 annotator, 100 judgements; pay: not recorded "
        "(`metrics/human/base/minillm/xl/seed10/dolly.json`)",
    ):  # fmt: skip
        assert line in lines, line
    assert not any("another" in line or "/home/me" in line for line in lines)


def test_the_tests_of_the_main_table_are_quoted(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "run/tables/main.md"
    begun(tmp_path / "run")
    notes = "± is over seeds.  \nBold: Holm's correction over 6 comparisons.  \n"
    put(tmp_path / "run", "tables/main.md", f"**T**\n\n| a |\n|:--|\n\n{notes}")
    lines = written(tmp_path / "run", tmp_path / "checklist.md")
    assert "- ± is over seeds (`tables/main.md`)" in lines
    assert "- Bold: Holm's correction over 6 comparisons (`tables/main.md`)" in lines
    assert not any("nothing in it is bold" in line for line in lines)
    table.write_text("**T**\n\n| a |\n|:--|\n\n± is over seeds.\n")
    lines = written(tmp_path / "run", tmp_path / "checklist.md")
    assert "- no lead of the main table was tested: nothing in it is bold (`tables/main.md`)" in lines


def test_every_answer_names_files_that_are_there(run: Path, tmp_path: Path) -> None:
    for line in answers(written(run, tmp_path / "checklist.md")):
        source = re.search(r"\((`[^()]+`)\)$", line)
        if source is None:
            assert "not recorded" in line or line.removeprefix("- ").startswith(NO_FILE), line
            continue
        for name in re.findall(r"`([^`]+)`", source[1]):
            # What other stages make, of which this made-up run has none.
            if name in ("tables/fidelity.md", layout.metrics_table()):
                continue
            folder = REPO if name.startswith("minillm/") else run
            assert any(folder.glob(name)), line


def test_nothing_is_invented_for_a_run_without_results(tmp_path: Path) -> None:
    lines = written(begun(tmp_path / "run"), tmp_path / "checklist.md")
    for line in (
        "- git revision of the code: not recorded (`models/**/provenance.json`)",
        "- versions of packages: not recorded (`models/**/provenance.json`)",
        "| all | 0 | not recorded | not recorded | not recorded |",
        "- peak memory of a training on its GPU: not recorded (`models/**/provenance.json`)",
        "- dolly: number of prompts not recorded",
        "- seed of the data: not recorded (`configs/data/*.json`)",
        "- error bars and tests of the main table: not recorded",
        "- no grid in this run: how its settings were chosen is not recorded",
        "- no scores of a judge are in this run (`configs/metrics.json`)",
    ):
        assert line in lines, line
    assert not re.search(r"\b(None|nan|null)\b", "\n".join(lines))


def test_damage_is_one_line(run: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    for path, value, message in (
        ("data/letters/training/card.json", {"train": {"kept": 3}}, "card.json: damaged: KeyError"),
        ("data/letters/training/card.json", "{", "card.json: not JSON"),
        ("grid/a/b/c.json", {"chosen": {}, "method": "a"}, "c.json: damaged"),
        ("generations/xl/teacher/dolly.meta.json", {"rows": "x", "seeds": []}, "meta.json: damaged"),
        (
            "models/xl/base/provenance.json",
            {"git": "a", "record_sha256": "0"},
            "changed since it was written",
        ),
        ("models/xl/base/provenance.json", {"packages": ["torch"]}, "damaged: TypeError.*packages"),
        ("models/xl/base/provenance.json", {"wall_seconds": "long"}, "damaged: TypeError.*wall_seconds"),
        ("models/xl/base/provenance.json", {"peak_memory_mb": {"gpu": "x"}}, "damaged: TypeError.*gpu"),
        ("configs/metrics.json", "{}", "metrics.json: "),
    ):
        begun(folder)
        put(folder, path, value)
        with pytest.raises(UserError, match=message) as error:
            written(folder, tmp_path / "checklist.md")
        assert "\n" not in str(error.value) and not (tmp_path / "checklist.md").exists()
        (folder / path).unlink()


def test_a_card_of_another_version_may_lack_counts(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    card = json.loads(json.dumps(CARD))
    for part in (card["train"], card["dev"]):
        del part["duplicates"], part["rows_sha256"]
    write_json(folder / "data/letters/training/card.json", card)
    lines = written(folder, tmp_path / "checklist.md")
    source = "(`data/letters/training/card.json`)"
    assert f"- train: not recorded rows equal to an earlier row {source}" in lines
    assert any(line.endswith(f"SHA-256 not recorded {source}") for line in lines)
