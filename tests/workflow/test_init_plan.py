"""What Snakemake plans for a configuration that `minillm init` wrote, and for those of today's models."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from checkout import Checkout
from init_case import make

from minillm.init import command


def test_a_configuration_of_init_is_planned(checkout: Checkout, tmp_path, monkeypatch) -> None:
    """Two folders and a file: the teacher is taken as it comes, the student trained by SFT and MiniLLM."""
    made = make(tmp_path)
    monkeypatch.chdir(checkout.root)
    monkeypatch.setattr(command, "plan", lambda files: None)
    command.begin(str(made / "Big"), str(made / "small"), str(made / "rows.jsonl"))
    jobs = Counter(job.split()[0] for job in checkout.planned(config="small-from-big.yaml"))
    trained = {"checkpoint": 1, "base": 1, "sft": 1, "minillm": 1}
    assert jobs.items() >= {**trained, "generate": 3, "rouge": 3, "data": 1, "testset": 1}.items()
    # Models, tokenizer and each part of the rows are watched; nothing comes from the hub.
    assert jobs["local"] == 6 and not {"fetch", "teacher", "kd", "pseudo", "seqkd"} & set(jobs)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["smollm2"], {"base": 3, "teacher": 1, "sft": 2, "kd": 2, "seqkd": 2, "minillm": 2, "generate": 36}),
        (["config", "qwen"], {"base": 2, "teacher": 1, "sft": 3, "kd": 3, "seqkd": 3, "minillm": 3}),
        # Five pairs, three seeds; MiniLLM, on-policy forward KL and GKD are one rule.
        (["config", "settle"], {"base": 7, "teacher": 5, "sft": 6, "kd": 15, "seqkd": 15, "minillm": 45}),
        (["settle-tiny"], {"base": 5, "teacher": 4, "sft": 2, "kd": 8, "minillm": 16, "fetch": 0}),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_configurations_of_todays_models(checkout: Checkout, files: list[str], expected: dict) -> None:
    paths = [f"config/{name}.yaml" for name in files]
    output = checkout.snakemake("-n", "--cores", "2", "--quiet", "rules", "--configfile", *paths).stdout
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
    assert {rule: counts.get(rule, 0) for rule in expected} == expected
