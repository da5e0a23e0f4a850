"""Stage `rouge`: one generations file to one metric file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.records import check_generations
from minillm.evaluation.statistics import mean_and_error
from minillm.files import write_json
from minillm.readers import read_object
from minillm.scores import exact_match, rouge_l

AGAIN = "remove it and generate again"


def run_stage(*, generations: Path, out: Path) -> None:
    """Write ROUGE-L and exact match of the responses in `generations` (with its FILE.meta.json) to `out`.

    "mean" is the mean of the seeds' means over rows (0 to 100); "standard_error" and "exact_match_error" are
    over the seeds' means (null for one seed); "scores" has each row's ROUGE-L in the order of "ids".  Raises
    UserError, one line naming file and line, if a line is damaged, (seed, id) occurs twice, a seed lacks rows
    that another has, or the meta file promises other rows or seeds.
    """
    meta, rows, ids = read_generations(generations)
    rouge: dict[str, list[float]] = {}
    exact: dict[str, float] = {}
    for seed in meta["seeds"]:
        answers = [rows[seed][id_] for id_ in ids]
        rouge[str(seed)] = [rouge_l(row["response"], row["references"]) for row in answers]
        hits = math.fsum(exact_match(row["response"], row["references"]) for row in answers)
        exact[str(seed)] = hits / len(answers)
    per_seed = {seed: math.fsum(scores) / len(scores) for seed, scores in rouge.items()}
    mean, error = mean_and_error(per_seed.values())
    exact_mean, exact_error = mean_and_error(exact.values())
    write_json(
        out,
        {
            "metric": "rougeL",
            "dataset": meta["dataset"],
            "n": len(ids),
            "seeds": meta["seeds"],
            "mean": mean,
            "standard_error": error,
            "over": "sampling seeds",
            "per_seed": per_seed,
            "ids": ids,
            "scores": rouge,
            "exact_match": exact_mean,
            "exact_match_error": exact_error,
            "sampling": meta["sampling"],
            "sources": [str(generations)],
        },
    )


def read_generations(path: Path) -> tuple[dict[str, Any], dict[int, dict[int, dict[str, Any]]], list[int]]:
    """The meta file, the rows as seed -> id -> row, and the ids, which all seeds share, in order.

    Raises UserError as `run_stage` does.
    """
    keys = {"dataset": str, "rows": int, "sampling": dict, "seeds": list}
    absent = "no such file; it is written with the generations, generate again"
    meta = read_object(path.with_suffix(".meta.json"), keys, absent, AGAIN)
    rows = _rows(path)
    ids = _check(path, rows, meta)
    check_generations(path, meta, rows)
    return meta, rows, ids


def _rows(path: Path) -> dict[int, dict[int, dict[str, Any]]]:
    """seed -> id -> row."""
    rows: dict[int, dict[int, dict[str, Any]]] = {}
    first: dict[tuple[int, int], int] = {}
    try:
        # Split only at "\n": str.splitlines would also split at separators that JSON leaves unescaped in
        # texts.
        lines = path.read_text().removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such generations file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}; {AGAIN}") from None
    for number, line in enumerate(lines, start=1):
        row = _row(line, f"{path}:{number}")
        key = (row["seed"], row["id"])
        if key in first:
            raise UserError(
                f"{path}:{number}: seed {key[0]}, id {key[1]} is in line {first[key]} already; {AGAIN}"
            )
        first[key] = number
        rows.setdefault(row["seed"], {})[row["id"]] = row
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not a line of JSON: {error}; {AGAIN}") from None
    for key, kind in (("id", int), ("seed", int), ("response", str), ("references", list)):
        if not isinstance(row, dict) or not isinstance(row.get(key), kind):
            raise UserError(f"{where}: '{key}' is missing or of the wrong type; {AGAIN}")
    if not row["references"] or not all(isinstance(reference, str) for reference in row["references"]):
        raise UserError(
            f"{where}: 'references' must be a list of at least one text; fix the test set and generate again"
        )
    return row


def _check(path: Path, rows: dict[int, dict[int, dict[str, Any]]], meta: dict[str, Any]) -> list[int]:
    """The ids, which all seeds share, in order; UserError if they do not."""
    if sorted(rows) != sorted(meta["seeds"]):
        raise UserError(
            f"{path}: seeds {sorted(rows)}, but its meta file says {sorted(meta['seeds'])}; {AGAIN}"
        )
    ids = sorted({id_ for answers in rows.values() for id_ in answers})
    for seed in meta["seeds"]:
        lacking = [id_ for id_ in ids if id_ not in rows[seed]]
        if lacking:
            raise UserError(
                f"{path}: seed {seed} lacks {len(lacking)} rows that other seeds have, "
                f"first id {lacking[0]}; {AGAIN}"
            )
    if len(ids) != meta["rows"]:
        raise UserError(
            f"{path}: {len(ids)} rows for each seed, but its meta file says {meta['rows']}; {AGAIN}"
        )
    return ids
