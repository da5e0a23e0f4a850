"""Stage `subsets`: instruction test sets by length of the reference.

From the tasks of Super-NaturalInstructions or from the published folders.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minillm.config.data import Dataset
from minillm.config.subsets import Subsets, SubsetsSettings
from minillm.counts import token_counter
from minillm.data.sources import read_rows, resolve_path
from minillm.errors import UserError
from minillm.files import settings_hash, sha256, whole_file, write_json
from minillm.readers import all_are, read_json, read_text

# The paper's, in tokens of the first reference.
BUCKETS = {"0_5": (0, 5), "6_10": (6, 10), "11_": (11, None)}
# The released folders are finer.
PUBLISHED = {"0_2": "0_5", "3_5": "0_5", "3_6": "0_5", "6_10": "6_10", "11_": "11_"}
# A task's first instances, as in Tk-Instruct's evaluation, from which the paper's 119 tasks come.
PER_TASK = 100
TASK_LISTS = ("splits/default/test_tasks.txt", "test_tasks.txt")

Entry = dict[str, Any]


def run_stage(
    settings: SubsetsSettings | None, *, out: Path, source: Path | None = None, tokenizer: Path | None = None
) -> None:
    """All rows of a folder, and its subsets by length, as JSON lines.

    All rows go to `out` (NAME.jsonl), the subsets to NAME.0_5.jsonl, NAME.6_10.jsonl and NAME.11_.jsonl,
    their counts to NAME.card.json.  The folder is `source`, or the one that the settings name.

    In the published layout (0_2, 3_5 or 3_6, 6_10, 11_, each with valid.jsonl) the folders say how long a
    reference is.  Of task files (task*.json, in `source` or its folder tasks/) those that test_tasks.txt
    lists are read, and measured with the `tokenizer` folder; without one there are no length subsets.  A
    subset without rows is an empty file.  Raises UserError if `source` has neither layout or is damaged.
    """
    if (source is None) == (settings is None):
        raise UserError("give the folder with --source, or --config with the settings that name it")
    source = source or folder_of(settings.rows)  # type: ignore[union-attr]
    if not source.is_dir():
        raise UserError(
            f"{source}: no such folder; give the one with task*.json, or with 0_2, 3_5, 6_10 and 11_"
        )
    published = [name for name in PUBLISHED if (source / name / "valid.jsonl").is_file()]
    count = token_counter(tokenizer) if tokenizer else None
    rows = list(_published(source, published) if published else _tasks(source, count))
    buckets = {name: [row for row in rows if row["bucket"] == name] for name in BUCKETS}
    _write(out, rows)
    written = [out]
    for name, entries in buckets.items():
        if published or count:
            written.append(out.with_suffix(f".{name}.jsonl"))
            _write(written[-1], entries)
    card = {
        "source": str(source),
        "layout": "published" if published else "tasks",
        "rows": len(rows),
        "subsets": {name: len(entries) for name, entries in buckets.items()},
        "tasks": len({row["topic"] for row in rows}),
        "files": {path.name: sha256(path) for path in written},
        "settings_sha256": settings_hash(dataclasses.asdict(settings)) if settings else None,
    }
    write_json(out.with_suffix(".card.json"), card)


def folder_of(rows: Subsets) -> Path:
    """The folder of an entry of `subsets`; for a repository its copy in the hub's cache, fetched if possible.

    Raises UserError if the hub's client fails.
    """
    if rows.source == "folder":
        return resolve_path(rows.path, "subsets")
    from huggingface_hub import snapshot_download

    patterns = [f"{name}/valid.jsonl" for name in PUBLISHED]
    try:
        return Path(
            snapshot_download(
                rows.path, repo_type="dataset", revision=rows.revision or "main", allow_patterns=patterns
            )
        )
    except Exception as error:
        # The hub's clients raise many kinds of exceptions, network failures among them; all become one line.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"subsets: cannot load '{rows.path}' from the hub ({reason}); check name, revision and network"
        ) from None


def bucket_of(tokens: int) -> str:
    """Name of the bucket for a reference of that many tokens."""
    return next(
        name for name, (low, high) in BUCKETS.items() if tokens >= low and (high is None or tokens <= high)
    )


def _published(source: Path, names: list[str]) -> Iterator[Entry]:
    for name in names:
        path = str(source / name / "valid.jsonl")
        for row in read_rows(Dataset(source="folder", path=path, fields={"category": "topic"}), str(source)):
            yield _entry(row.category, row.instruction, row.input, list(row.outputs), PUBLISHED[name])


def _tasks(source: Path, count: Callable[[str], int] | None) -> Iterator[Entry]:
    listed = next((source / name for name in TASK_LISTS if (source / name).is_file()), None)
    if listed is None:
        raise UserError(
            f"{source}: neither {' nor '.join(TASK_LISTS)} here, nor folders like 11_ with valid.jsonl"
        )
    folder = source / "tasks" if (source / "tasks").is_dir() else source
    for name in read_text(listed).split():
        path = folder / f"{name.removesuffix('.json')}.json"
        definition, instances = _task(path)
        for i, instance in enumerate(instances[:PER_TASK]):
            text, outputs = instance.get("input"), instance.get("output")
            outputs = [outputs] if isinstance(outputs, str) else outputs
            if not isinstance(text, str) or not outputs or not all_are(outputs, str):
                raise UserError(f"{path}: Instances.{i}: no input, or no output; fix or remove this instance")
            yield _entry(path.stem, definition, text, outputs, bucket_of(count(outputs[0])) if count else "")


def _task(path: Path) -> tuple[str, list[Any]]:
    """(definition, instances) of a task file."""
    absent = "no such task file, but the list of test tasks names it"
    task = read_json(path, absent, "download it again")
    definition = task.get("Definition") if isinstance(task, dict) else None
    definition = definition[0] if isinstance(definition, list) and definition else definition
    if not isinstance(definition, str) or not isinstance(task.get("Instances"), list):
        raise UserError(
            f"{path}: 'Definition' or 'Instances' is missing or of the wrong type; download it again"
        )
    return definition, [entry if isinstance(entry, dict) else {} for entry in task["Instances"]]


def _entry(topic: str, instruction: str, text: str, outputs: list[str], bucket: str) -> Entry:
    return {"topic": topic, "instruction": instruction, "input": text, "output": outputs, "bucket": bucket}


def _write(path: Path, rows: list[Entry]) -> None:
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
