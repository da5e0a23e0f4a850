"""Generations for stages that read texts: checked rows by seed and id, and questions without the wrapper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.data.conversations import are_messages, as_text
from minillm.errors import UserError
from minillm.evaluation.generations import AGAIN, read_generations

PREAMBLE = re.compile(
    r"\ABelow is an instruction that describes a task.*?\n\n(?=### Instruction:\n)", re.DOTALL
)
ENDING = "### Response:\n"


@dataclass(frozen=True)
class Answers:
    """The rows of a generations file: rows[seed][id], `ids` and `seeds` in order."""

    path: Path
    dataset: str
    seeds: list[int]
    ids: list[int]
    rows: dict[int, dict[int, dict[str, Any]]]


def read_answers(path: Path) -> Answers:
    """`path` and its meta file, checked as in the rouge stage; UserError, one line, if they are damaged."""
    meta, rows, ids = read_generations(path)
    for seed in meta["seeds"]:
        for id_ in ids:
            if not isinstance(rows[seed][id_].get("prompt"), str):
                raise UserError(f"{path}: seed {seed}, id {id_}: 'prompt' is missing or not a text; {AGAIN}")
            if not are_messages(rows[seed][id_].get("messages", [])):
                raise UserError(f"{path}: seed {seed}, id {id_}: 'messages' are no messages; {AGAIN}")
    return Answers(path, meta["dataset"], list(meta["seeds"]), ids, rows)


def question(prompt: str) -> str:
    """The prompt's question without the wrapper's first sentence and cue; headings only with an input."""
    text = PREAMBLE.sub("", prompt).removesuffix(ENDING).strip()
    return text if "\n### Input:\n" in text else text.removeprefix("### Instruction:\n")


def question_of(row: Mapping[str, Any]) -> str:
    """What a row of responses answers: its messages if a chat template rendered it, or its question."""
    return as_text(row["messages"]) if "messages" in row else question(row["prompt"])
