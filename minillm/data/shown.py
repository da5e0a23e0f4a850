"""Stage `prompts`: the rows of a data folder as who teaches is shown them, by another text."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minillm.config.stage_settings import PromptsSettings
from minillm.data.prepare import source_of, statistics
from minillm.data.prompts import render
from minillm.data.rows import AGAIN, Rows
from minillm.data.sources import Row, read_rows
from minillm.errors import UserError
from minillm.files import (
    CARD,
    CHAT_TEMPLATE,
    data_content,
    hashes,
    identity,
    settings_hash,
    tokenizer_content,
    whole_folder,
    write_json,
)
from minillm.readers import read_object


def run_stage(settings: PromptsSettings, *, data: Path, out: Path) -> None:
    """Stage `prompts`: a data folder without corpus, with the rows and responses of `data` and other prompts.

    A row's category is recorded too.  None is dropped, however long its prompt: the stage that reads them
    compares that with what its models take.  Raises UserError if the source's rows are not those of `data`.
    """
    # First: a damaged folder is named as such.
    content = identity(data)
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer", local_files_only=True)
    of_data = read_object(data / CARD, {"tokenizer": dict}, "no data folder here", AGAIN)
    card: dict[str, Any] = {}
    with whole_folder(out) as partial:
        shutil.copytree(data / "tokenizer", partial / "tokenizer")
        if (data / CHAT_TEMPLATE).is_file():
            shutil.copy(data / CHAT_TEMPLATE, partial / CHAT_TEMPLATE)
        for split, dataset in (("train", settings.train), ("dev", settings.dev)):
            every = split == "train" and settings.turns == "all"
            rows = {row.id: row for row in read_rows(dataset, f"data.{split}", every_turn=every)}
            card[split] = _write(partial, split, rows, Rows.open(data, split), settings, tokenizer)
            card[split]["source"] = source_of(dataset)
        card["tokenizer"] = dict(of_data["tokenizer"])
        card["data"], card["settings_sha256"] = content, settings_hash(dataclasses.asdict(settings))
        card["files"] = hashes(partial)
        card["tokenizer"]["sha256"] = tokenizer_content(card["files"])
        card["content"] = data_content(card["files"])
        write_json(partial / CARD, card)


def _write(
    folder: Path,
    split: str,
    rows: dict[int, Row],
    kept: Rows,
    settings: PromptsSettings,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    where = f"data.{split}"
    tokens: list[np.ndarray] = []
    lengths, lines = [], []
    for i, record in enumerate(kept.records):
        row = rows.get(record["id"])
        if row is None or (row.instruction, row.input) != (record["instruction"], record["input"]):
            raise UserError(f"{where}: row {record['id']} is not the one in {kept.folder}; {AGAIN}")
        text = render(shown(row, settings.text), settings.template, tokenizer, where)
        prompt = np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)
        # As it is: joint tokenisation with another prompt might give others than the student learns.
        response = kept.response(i)
        tokens += [prompt, response]
        lengths.append((len(prompt), len(response)))
        line = record | {"prompt": text, "category": row.category}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    np.save(folder / f"{split}.tokens.npy", np.concatenate(tokens).astype(np.int32))
    np.save(folder / f"{split}.lengths.npy", np.asarray(lengths, dtype=np.int32))
    return {"kept": len(lines), "prompt_tokens": statistics([length for length, _ in lengths])}


def shown(row: Row, text: str) -> Row:
    """The row whose question is `text` with what it names put in; earlier turns of a conversation stay.

    {instruction}, {input}, {output}: as in the row, the first output; {question}: instruction and any input.
    Of a conversation the question is the last turn before the answer.  Without a text, the row itself.
    """
    if not text:
        return row
    instruction = row.messages[-1]["content"] if row.messages else row.instruction
    places = {
        "instruction": instruction,
        "input": row.input,
        "question": f"{instruction}\n\n{row.input}" if row.input else instruction,
        "output": row.outputs[0].strip(),
    }
    question = text.format_map(places)
    messages = tuple(dict(message) for message in row.messages)
    if messages:
        messages = (*messages[:-1], {**messages[-1], "content": question})
    return dataclasses.replace(row, instruction=question, input="", messages=messages)
