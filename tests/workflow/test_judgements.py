"""The jobs of calibration, judge and human comparisons.

They are planned only where they are asked for, each by a command that the package takes.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from minillm.cli import parser
from minillm.config.experiment import experiment
from minillm.errors import UserError

REPO = Path(__file__).resolve().parents[2]

COLOUR = {
    "dataset": "colours",
    "prompt": "What colour is it?",
    "input": "{sentence}",
    "labels": {"red": "red", "green": "green"},
}
STUDENT = "small/minillm/big/seed10"
TARGETS = (
    f"calibration/{STUDENT}/colour",
    f"judge/{STUDENT}/easy",
    f"human/{STUDENT}/hard",
    "human/short/minillm/big/seed10/hard",
)


def edit(config: dict[str, Any]) -> None:
    config["datasets"]["colours"] = {"source": "embedded", "split": "colour"}
    config["calibration"] = {"tasks": {"colour": COLOUR}}
    config["judge"] = {"kind": "stand-in", "tests": ["easy"]}
    config["human"] = {"test": "hard", "answers": ["anna.json", "ben.json"]}


def test_jobs_and_their_commands(checkout) -> None:
    name = checkout.write("analyses.yaml", edit)
    for file in ("anna.json", "ben.json"):
        (checkout.root / file).write_text("{}")
    targets = [f"results/plan/metrics/{target}.json" for target in TARGETS]
    output = checkout.snakemake("-n", "-p", "--cores", "2", *targets, "--configfile", name).stdout
    words = [
        shlex.split(line.split(" > ")[0])
        for line in re.findall(r"^Shell command: (.*-m minillm .*)$", output, re.MULTILINE)
    ]
    found = [line[line.index("minillm") + 1 :] for line in words]
    stages = [line[0] for line in found]
    assert [stages.count(s) for s in ("calibration", "judge", "human-export", "human-import")] == [1, 1, 2, 2]
    for line in found:
        parser().parse_args(line)  # ends the test with the message of the command line
    export = next(line for line in found if line[0] == "human-export" and STUDENT in " ".join(line))
    assert export[export.index("--against") + 1 : export.index("--out")] == [
        f"results/plan/generations/{weights}/hard.jsonl"
        for weights in ("small/sft/seed10", "small/kd/big/seed10", "small/seqkd/big/seed10", "big/teacher")
    ]
    counted = next(line for line in found if line[0] == "human-import")
    assert (
        counted[2:4] == ["anna.json", "ben.json"]
        and len(counted[counted.index("--also") + 1 : counted.index("--out")]) == 2
    )


def test_answers_do_not_change_the_page(checkout) -> None:
    """Settings files are what a job depends on.

    Those of the page hold no answers, those of a task no other section.
    """
    from minillm.config.derive import stage_settings

    raw: dict[str, Any] = json.loads(json.dumps(checkout_config(checkout)))
    one = experiment(raw)
    raw["human"]["answers"] = []
    raw["judge"]["rows"] = 3
    other = experiment(raw)
    assert stage_settings(one, "human") == stage_settings(other, "human")
    assert stage_settings(one, "judge") != stage_settings(other, "judge")
    assert stage_settings(one, "calibration", task="colour") == stage_settings(
        other, "calibration", task="colour"
    )


def checkout_config(checkout) -> dict[str, Any]:
    return yaml.safe_load((checkout.root / checkout.write("analyses.yaml", edit)).read_text())


HOSTILE = (
    "x$(touch pwned).json",
    "answers-A (1).json",
    'it\'s "b".json',
    "ä `touch pwned`.json",
    ";touch pwned;.json",
)


def test_names_of_answer_files_run_no_command(finished) -> None:
    """Whatever a browser or an annotator calls a file, it reaches the stage as it is."""
    for file in HOSTILE:
        (finished.root / file).write_text("{}")
    section = {"test": "hard", "answers": list(HOSTILE)}
    name = finished.write("hostile.yaml", lambda config: config.update(human=section))
    target = f"results/plan/metrics/human/{STUDENT}/hard.json"
    done = finished.snakemake("-p", "--cores", "2", target, "--configfile", name)
    commands = re.findall(r"^Shell command: (.*-m minillm human-import .*)$", done.stdout, re.MULTILINE)
    words = shlex.split(commands[0].split(" > ")[0])
    assert words[words.index("--answers") + 1 : words.index("--key")] == list(HOSTILE)
    assert (finished.root / target).exists() and not (finished.root / "pwned").exists()


@pytest.mark.parametrize("name", ["-rf.json", "a\nb.json", "", "{test}.json"])
def test_names_that_no_command_line_can_carry_are_refused(name) -> None:
    raw = yaml.safe_load((REPO / "tests/config/plan.yaml").read_text())
    raw["human"] = {"test": "hard", "answers": ["anna.json", name]}
    with pytest.raises(UserError, match="^config: human.answers.1: .*; rename the file$"):
        experiment(raw)


# Parameters that quote what they hold.
QUOTES = r"(\w+)=(?:option\(|lambda wildcards, input: shlex\.join\()"


def test_every_value_in_a_shell_command_is_quoted() -> None:
    """Except for commands and options, which minillm/workflow/ and common.smk put together and quote."""
    made_of_quoted = {"{params.command}", "{params.options}", "{params.parent}"}
    for path in (REPO / "rules").glob("*.smk"):
        text = path.read_text()
        quoted = made_of_quoted | {f"{{params.{name}}}" for name in re.findall(QUOTES, text)}
        for block in re.findall(r"^    shell:\n((?:        .*\n)+)", text, re.MULTILINE):
            values = set(re.findall(r"\{[^{}]+\}", block))
            assert values and not {v for v in values if not v.endswith(":q}")} - quoted, (
                path.name,
                block,
            )
