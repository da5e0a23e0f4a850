"""The plan of a pair whose models have chat templates of their own: which jobs get both prompts."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from chat_case import configuration

from minillm.config.chat import linked
from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.errors import UserError

DATA = "results/chat/data"


def raw(**chat) -> dict:
    values = configuration(Path("elsewhere"))
    values["tokenizers"]["headers"].update(chat)
    return values


def options(output: str, stage: str) -> list[dict[str, list[str]]]:
    """Each planned command of a stage: option -> its words."""
    found = []
    for line in re.findall(rf"-m minillm {stage} (.*)$", output, re.MULTILINE):
        parsed: dict[str, list[str]] = {}
        for word in shlex.split(line.split(" > ")[0]):
            if word.startswith("--"):
                values = parsed.setdefault(word, [])
            else:
                values.append(word)
        found.append(parsed)
    return found


def test_jobs_that_work_with_both_models_get_both_prompts(checkout):
    (checkout.root / "mine.jinja").write_text("{{ messages }}")
    (checkout.root / "chat.yaml").write_text(json.dumps(raw(chat={"template": "mine.jinja"})))
    output = checkout.snakemake("-n", "-p", "--configfile", "chat.yaml").stdout
    theirs = [f"{DATA}/headers/training"]
    for stage in ("kd", "seqkd", "minillm"):
        (command,) = options(output, stage)
        assert command["--data"] == [f"{DATA}/marks/training"] and command["--teacher-data"] == theirs
    (seqkd,), (pseudo,) = options(output, "seqkd"), options(output, "pseudo")
    assert seqkd["--pseudo"] == pseudo["--out"] == [f"{DATA}/headers/pseudo/big.jsonl"]
    assert pseudo["--data"] == theirs
    for command in (*options(output, "teacher"), *options(output, "sft")):
        assert "--teacher-data" not in command
    also = {command["--data"][0]: command["--also"] for command in options(output, "testset")}
    assert also == {
        f"{DATA}/{a}/training": [f"{DATA}/{b}/training"]
        for a, b in (("marks", "headers"), ("headers", "marks"))
    }
    ours = [f"{DATA}/marks/tests/test.jsonl"]
    commands = options(output, "exposure_bias")
    assert len(commands) == 4 and all(command["--test"] == ours for command in commands)
    # A template's file is an input of both data jobs: each renders by both templates.
    inputs = re.findall(r"^rule data:\n    input: (.*)$", output, re.MULTILINE)
    assert len(inputs) == 2 and all("mine.jinja" in files for files in inputs)


def test_settings_of_the_data_stage():
    config = experiment(raw(chat={"end": "<|eot|>"}))
    marks = stage_settings(config, "data", tokenizer="marks")
    assert marks["tokenizer"]["chat"] == {"template": "", "system": "", "thinking": False, "end": ""}
    assert marks["turns"] == "all" and marks["also"] == [
        stage_settings(config, "data", tokenizer="headers")["tokenizer"]
    ]
    # Without chat templates nothing of them is in a settings file.
    values = raw()
    values["data"] |= {"template": "plain", "turns": "last"}
    values["models"]["big"]["tokenizer"] = "marks"
    plain = canonical(stage_settings(experiment(values), "data", tokenizer="marks"))
    assert not any(key in plain for key in ('"chat"', '"turns"', '"also"'))


def test_two_tokenizers_in_a_pair():
    values = raw()
    values["data"]["template"] = "alpaca"
    said = "config: pairs.0.students.0: small has the tokenizer 'marks' and its teacher big 'headers'"
    with pytest.raises(UserError, match=said):
        experiment(values)


def test_a_model_may_teach_itself_by_another_template_only():
    values = raw()
    values["models"]["small"] = {**values["models"]["big"], "tokenizer": "marks"}
    assert experiment(values)
    values["tokenizers"]["marks"] = values["tokenizers"]["headers"]
    with pytest.raises(UserError, match="small is the same model as its teacher big"):
        experiment(values)


def test_linked_tokenizers():
    values = raw()
    values["tokenizers"] |= {"third": values["tokenizers"]["marks"], "alone": values["tokenizers"]["marks"]}
    for name in ("third", "alone"):
        values["models"][name] = {**values["models"]["small"], "tokenizer": name, "size": name}
    values["models"]["other"] = {**values["models"]["big"], "tokenizer": "alone"}
    values["sweeps"] = [{"teacher": "third", "students": ["big"], "methods": ["kd"]}]
    values["pairs"].append({"teacher": "other", "students": ["alone"]})
    config = experiment(values)
    assert linked(config, "marks") == ("headers", "third") and linked(config, "third") == ("headers", "marks")
    assert linked(config, "alone") == ()
