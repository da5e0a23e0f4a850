"""The teacher's answers that SeqKD is trained on, as stage `pseudo` writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minillm.data.rows import Example, Rows
from minillm.data.teacher_prompts import TeacherPrompts, exchanged
from minillm.data.tokenizers import vocabulary_size
from minillm.errors import UserError
from minillm.files import check_record, sha256
from minillm.models.loading import load_tokenizer
from minillm.readers import read_json_lines, read_object

AGAIN = "remove it and make the teacher's answers again"


def read_answers(path: Path, data: Path, teacher_data: Path | None = None) -> dict[str, list[Example]]:
    """Split ("train", "dev") -> the folder's prompts with the teacher's answers, in the order of the rows.

    A teacher with rows of its own (`teacher_data`) ends its answers with its own token, which becomes that of
    the folder.

    Raises UserError, one line naming file and line, for a damaged line, a row that the data folder lacks, a
    row left out or answered twice, a token outside of the vocabulary, and a file that is not what its
    FILE.meta.json (absent before version 0.1.0) says.
    """
    _check_meta(path)
    parts = {split: Rows.open(data, split) for split in ("train", "dev")}
    places = {split: {int(row): i for i, row in enumerate(part.ids)} for split, part in parts.items()}
    vocabulary = vocabulary_size(load_tokenizer(data / "tokenizer"))
    answered: dict[str, dict[int, np.ndarray]] = {split: {} for split in parts}
    for where, answer in _lines(path, vocabulary):
        split, id_ = answer["split"], answer["id"]
        if id_ not in places.get(split, {}):
            raise UserError(f"{where}: no {split} row has the id {id_}; {AGAIN}")
        if places[split][id_] in answered[split]:
            raise UserError(f"{where}: the {split} row {id_} is answered twice; {AGAIN}")
        answered[split][places[split][id_]] = np.asarray(answer["response_tokens"], dtype=np.int32)
    _check_complete(path, parts, answered)
    teacher = TeacherPrompts.open(data, teacher_data)
    swap = teacher.swap if teacher else None
    return {
        split: [
            (parts[split].prompt(i), exchanged(answers[i], swap) if swap else answers[i])
            for i in sorted(answers)
        ]
        for split, answers in answered.items()
    }


def _check_meta(path: Path) -> None:
    meta_file = path.with_suffix(".meta.json")
    if not meta_file.exists():
        return
    meta = read_object(meta_file, {"content": str}, "no such file", AGAIN)
    check_record(meta, meta_file, AGAIN)
    if path.is_file() and meta["content"] != sha256(path):
        raise UserError(f"{path}: not what its meta file says, changed or cut short; {AGAIN}")


def _lines(path: Path, vocabulary: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, answer) of each line."""
    keys = {"id": int, "split": str, "response_tokens": list}
    absent = "no such file; make the teacher's answers first"
    for number, answer in read_json_lines(path, keys, absent, AGAIN):
        where, tokens = f"{path}:{number}", answer["response_tokens"]
        wrong = [t for t in tokens if type(t) is not int or not 0 <= t < vocabulary]
        if wrong or not tokens:
            what = f"{wrong[0]!r} is not a token of a vocabulary of {vocabulary}" if wrong else "no tokens"
            raise UserError(f"{where}: {what}; {AGAIN}")
        yield where, answer


def _check_complete(
    path: Path, parts: Mapping[str, Rows], answered: Mapping[str, Mapping[int, np.ndarray]]
) -> None:
    """The first so many rows of a split are answered, without a gap."""
    for split, answers in answered.items():
        missing = [i for i in range(max(answers, default=-1)) if i not in answers]
        if missing:
            raise UserError(
                f"{path}: no answer to the {split} row {parts[split].ids[missing[0]]}, "
                f"and none to {len(missing) - 1} others before the last; {AGAIN}"
            )
    if not answered["train"]:
        raise UserError(f"{path}: no answer to a training row; {AGAIN}")
