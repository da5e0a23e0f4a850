"""`minillm init`: a configuration that is right, from two models and rows, or one line that says why not."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from chat_case import HEADERS, MARKS, conversations, make_tokenizer, some_rows
from init_case import make, model, rows
from transformers import AutoTokenizer

from minillm.cli import main
from minillm.config.experiment import Experiment
from minillm.data.sources import read_rows
from minillm.fits.sizes import shape_of, size_of
from minillm.init import command
from minillm.plan import configuration

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("init"))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the checkout, and without Snakemake, which tests/workflow asks."""
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(command, "plan", lambda files: print("PLAN", *files))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def init(made: Path, out: Path, *more: str, **changed: Any) -> int:
    names = {"teacher": made / "Big", "student": made / "small", "data": made / "rows.jsonl", **changed}
    return main(
        ["init", *(str(x) for k, v in names.items() for x in (f"--{k}", v)), "--out", str(out), *more]
    )


def written(made: Path, out: Path, *more: str, **changed: Any) -> Experiment:
    assert init(made, out, *more, **changed) == 0
    return configuration([out])


def test_it_writes_what_was_found(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.yaml"
    config = written(made, out)
    (pair,) = config.pairs
    assert (pair.teacher, pair.students, config.methods) == ("big", ("small",), ("sft", "minillm"))
    # As it comes: not fine-tuned.
    assert config.checkpoints["big/teacher"] == config.models["big"]
    assert config.tokenizers[config.models["small"].tokenizer].path == str(made / "Big")
    assert size_of(shape_of(config, "big")).layers == 3
    parts = {p: config.datasets[getattr(config.data, p)] for p in ("train", "dev")}
    parts["test"] = config.datasets[config.data.tests[0]]
    ids = {part: [row.id for row in read_rows(spec, part)] for part, spec in parts.items()}
    assert [len(ids[part]) for part in ("dev", "test", "train")] == [12, 12, 96]
    assert sorted(sum(ids.values(), [])) == list(range(120))
    # No plain text, so no loss on any; the phase is as long as the rows allow, in whole batches.
    settings = config.on_policy("minillm", "small")
    assert config.data.corpus == "" and settings.lm_coef == 0
    assert settings.collections * settings.rollouts == pytest.approx(10 * 96, rel=0.1)
    # The paper's prompt alone is longer than the default room of these models.
    assert config.data.max_prompt + config.data.max_response <= 128
    assert settings.max_tokens == config.generate.max_tokens == config.data.max_response
    said = capsys.readouterr().out
    assert "licence mit" in said and f"PLAN {out}" in said
    assert f"snakemake --cores all --configfile {out}" in said
    # Fifty with short paths.
    assert 25 < len(out.read_text().splitlines()) < 80


def test_what_is_asked_for_is_in_it(made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some text.\nMore text.\n")
    test = rows(tmp_path / "apart.jsonl", 20, instruction="question", output="answer")
    test.write_text(test.read_text().replace("Add", "Please add"))
    options = ["--finetune-teacher", "--method", "kd", "gkd", "--text", str(tmp_path / "text.txt")]
    config = written(made, tmp_path / "a.yaml", *options, "--test", str(test), "--run", "mine")
    assert not config.checkpoints and config.methods == ("sft", "kd", "gkd") and config.run == "mine"
    assert config.on_policy("gkd", "small").objective == "jensen_shannon"
    assert config.on_policy("gkd", "small").lm_coef == 1 and config.data.corpus == "text"
    spec = config.datasets[config.data.tests[0]]
    assert (spec.fields, spec.rows) == ({"instruction": "question", "output": "answer"}, 0)
    assert config.datasets[config.data.train].start == config.datasets[config.data.dev].rows == 12


def test_two_of_the_catalogue_need_no_file(made: Path, tmp_path: Path) -> None:
    """The catalogue says that they share a tokenizer; nothing of them is written again."""
    config = written(made, tmp_path / "a.yaml", teacher="pythia-1b", student="pythia-160m")
    assert config.pairs[0].teacher == "pythia-1b" and "pythia" in (tmp_path / "a.yaml").read_text()
    assert config.checkpoints["pythia-1b/teacher"].revision == config.models["pythia-1b"].revision
    assert "models:" not in (tmp_path / "a.yaml").read_text()


def test_a_folder_with_a_name_of_the_catalogue_is_another_model(made: Path, tmp_path: Path) -> None:
    os.symlink(made / "small", tmp_path / "gpt2")
    config = written(made, tmp_path / "a.yaml", student=tmp_path / "gpt2")
    (student,) = config.pairs[0].students
    assert student != "gpt2" and config.models[student].revision == ""


def test_two_chat_templates_and_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model has its own tokenizer and template; with one template they share one."""
    for name, template in (("Big", HEADERS), ("small", MARKS), ("like", MARKS)):
        model(
            tmp_path / name, AutoTokenizer.from_pretrained(make_tokenizer(tmp_path / name, template)), 1, 400
        )
    conversations(tmp_path / "rows.jsonl", *some_rows("train", 60))
    config = written(tmp_path, tmp_path / "two.yaml")
    assert "prompts: by chat template, each model's own" in capsys.readouterr().out
    assert config.data.template == "chat" and config.datasets["train"].fields == {}
    paths = {name: config.tokenizers[config.models[name].tokenizer].path for name in ("big", "small")}
    assert paths == {"big": str(tmp_path / "Big"), "small": str(tmp_path / "small")}
    assert config.checkpoints["big/teacher"] == config.models["big"]
    config = written(tmp_path, tmp_path / "one.yaml", teacher=tmp_path / "like")
    assert "prompts: by chat template, that of like" in capsys.readouterr().out
    assert {config.models[name].tokenizer for name in ("like", "small")} == {"shared"}


def test_a_gate_is_said(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(made, tmp_path / "a.yaml", teacher="llama-3.1-8b", student="llama-3.2-1b") == 0
    said = capsys.readouterr().out
    assert "accept its licence at https://huggingface.co/meta-llama/Llama-3.1-8B" in said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"student": "{made}/other"},
            "other and big have different tokenizers, and every method here, SeqKD",
        ),
        ({"teacher": "{made}/gone"}, "{made}/gone: no such folder, and neither a name of config/models.yaml"),
        ({"teacher": "pythia-7b"}, "pythia-7b: no such folder.*did you mean 'pythia-"),
        (
            {"teacher": "nobody/nothing"},
            r"nobody/nothing: cannot be had from the hub \(.*check name and netw",
        ),
        ({"teacher": "{made}"}, "{made}: no model here \\(config.json is missing\\)"),
        ({"data": "{tmp}/few.jsonl"}, "{tmp}/few.jsonl: 40 rows are too few .* give 50 or more"),
        (
            {"data": "{tmp}/twice.jsonl"},
            r"\d+ questions are in more than one of train, dev and test, such as",
        ),
        ({"data": "{tmp}/talk.jsonl"}, "{tmp}/talk.jsonl: rows of conversations"),
        ({"data": "{tmp}/odd.jsonl"}, "{tmp}/odd.jsonl: no columns for instruction and output among a, b"),
        ({"data": "{tmp}/gone.jsonl"}, "{tmp}/gone.jsonl.*: no such file"),
        ({"method": "magic"}, "--method magic: unknown; choose from sft, kd"),
        ({"out": "{tmp}/few.jsonl"}, "{tmp}/few.jsonl: this file exists; name another"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changed: dict[str, str], said: str
) -> None:
    rows(tmp_path / "few.jsonl", 40)
    twice = rows(tmp_path / "twice.jsonl", 60).read_text().splitlines()
    (tmp_path / "twice.jsonl").write_text("\n".join([*twice, *twice[:20]]))
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": []}))
    (tmp_path / "odd.jsonl").write_text('{"a": "x", "b": "y"}')
    before = sorted(tmp_path.iterdir())
    places = {"made": str(made), "tmp": str(tmp_path)}
    values = {key: value.format(**places) for key, value in changed.items()}
    assert init(made, Path(values.pop("out", tmp_path / "new.yaml")), **values) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("minillm init: error: ")
    assert re.search(said.format(**places), lines[0]), lines[0]
    assert sorted(tmp_path.iterdir()) == before
