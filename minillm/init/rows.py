"""What `minillm init` finds out about the data: columns, numbers of rows, splits, lengths."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minillm.config.chat import Chat
from minillm.config.data import Dataset
from minillm.data.chat import with_chat
from minillm.data.conversations import MESSAGES
from minillm.data.prompts import render
from minillm.data.sources import Row, read_entries, read_rows
from minillm.errors import UserError

# Names of columns that others use.
COLUMNS = {
    "instruction": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion", "outputs", "responses"),
}
CONVERSATIONS = (*MESSAGES, "conversation")
# Rows without which nothing can be measured, least and most rows of dev and test sets, and their share.
FEWEST, LEAST, MOST, SHARE = 50, 10, 500, 10
# Rows whose lengths are looked at.
LOOKED_AT = 2000


@dataclass(frozen=True)
class Data:
    """Entries of `datasets` for train, dev and test, numbers of rows, and (prompt, response) lengths.

    Lengths are those that 99 of 100 rows do not exceed, in tokens, EOS included; (0, 0) if not counted.
    """

    entries: dict[str, dict[str, Any]]
    counts: dict[str, int]
    template: str
    lengths: tuple[int, int]


def template_and_fields(columns: Sequence[str], where: str, chats: bool) -> tuple[str, dict[str, str]]:
    """The prompt template (`data.template`) and `fields` for rows with these columns.

    chats: whether both models have a chat template.  Raises UserError, one line, if the columns say nothing,
    or are conversations, which no other template can show.
    """
    found: dict[str, str] = {}
    for ours, names in COLUMNS.items():
        name = next((name for name in names if name in columns), None)
        if name is not None:
            found[ours] = name
    if {"instruction", "output"} <= found.keys():
        return "chat" if chats else "alpaca", {ours: name for ours, name in found.items() if ours != name}
    talk = next((name for name in CONVERSATIONS if name in columns), None)
    if talk and not chats:
        raise UserError(
            f"{where}: rows of conversations ('{talk}'), and a model without a chat template; name models "
            "that have one, or write each row as instruction, input and output"
        )
    if talk:
        return "chat", {} if talk in MESSAGES else {MESSAGES[0]: talk}
    raise UserError(
        f"{where}: no columns for instruction and output among {', '.join(columns)}; rename them, such as to "
        "instruction and output"
    )


def look(
    data: str,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    chats: bool = False,
    dev: str = "",
    test: str = "",
) -> Data:
    """Splits `data` (a file, or a data set of the hub) in its order, unless `dev` or `test` are given.

    Dev rows come first, then test rows; the rest is trained on.  Raises UserError, one line, for files that
    cannot be read, too few rows, and questions that more than one part asks.  Lengths are the longest in the
    tokens of `tokenizers`; chats: whether they have chat templates.
    """
    names = {"train": data, "dev": dev or data, "test": test or data}
    entries, rows, template = {}, {}, ""
    for part, name in names.items():
        entry = _entry(name)
        (_, _, columns), *_ = read_entries(Dataset(**{**entry, "rows": 1}), name)
        template, fields = template_and_fields(list(columns), name, chats)
        entries[part] = {**entry, "fields": fields} if fields else entry
        rows[part] = read_rows(Dataset(**entries[part]), name)
    _split(entries, rows, data, own={"dev": bool(dev), "test": bool(test)})
    entries["test"]["label"] = Path(names["test"]).name.split(".")[0]
    _refuse_repeated(rows)
    found = [_lengths(rows["train"][:LOOKED_AT], template, tokenizer) for tokenizer in tokenizers]
    longest = max((p for p, _ in found), default=0), max((r for _, r in found), default=0)
    return Data(entries, {part: len(rows[part]) for part in rows}, template, longest)


def _entry(name: str) -> dict[str, Any]:
    """The entry of `datasets` for a file or a data set of the hub."""
    if Path(name).is_file() or "/" not in name or name.startswith((".", "/", "$", "package:")):
        return {"source": "folder", "path": name}
    return {"source": "hub", "path": name}


def _split(
    entries: dict[str, dict[str, Any]], rows: dict[str, list[Row]], data: str, own: dict[str, bool]
) -> None:
    """Gives dev and test, unless they have files of their own, the first rows of `data`."""
    total, start = len(rows["train"]), 0
    if total < FEWEST:
        raise UserError(
            f"{data}: {total} rows are too few to train, choose and test on; give {FEWEST} or more"
        )
    size = max(LEAST, min(MOST, total // SHARE))
    for part in ("dev", "test"):
        if not own[part]:
            entries[part] |= {"start": start, "rows": size} if start else {"rows": size}
            rows[part] = rows[part][start : start + size]
            start += size
    if start:
        entries["train"]["start"] = start
        rows["train"] = rows["train"][start:]


def _refuse_repeated(rows: dict[str, list[Row]]) -> None:
    places: dict[tuple[str, str], tuple[str, int]] = {}
    repeated = []
    for part, found in rows.items():
        for row in found:
            first = places.setdefault(row.key, (part, row.id))
            if first[0] != part:
                repeated.append(f"row {row.id} ({part}) and row {first[1]} ({first[0]})")
    if repeated:
        raise UserError(
            f"{len(repeated)} questions are in more than one of train, dev and test, such as {repeated[0]}, "
            "counted from 0; remove repeated rows"
        )


def _lengths(rows: Sequence[Row], template: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    if template == "chat":
        # A copy, since the template becomes part of it.
        tokenizer = copy.deepcopy(tokenizer)
        with_chat(tokenizer, Chat())
    texts = [render(row, template, tokenizer, "data.train") for row in rows]
    prompts = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    responses = [len(tokenizer.encode(row.outputs[0], add_special_tokens=False)) + 1 for row in rows]
    return _most(prompts), _most(responses)


def _most(lengths: Sequence[int]) -> int:
    """What 99 of 100 do not exceed."""
    return sorted(lengths)[math.ceil(0.99 * len(lengths)) - 1]
