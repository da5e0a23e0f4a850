"""Responses and their meta file, as every metric of responses reads them.

Apart from ROUGE's module: its package takes seconds to import, and other metrics do without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.records import check_generations
from minillm.readers import Kind, all_are, read_json_lines, read_object

AGAIN = "remove it and generate again"
ROW: dict[str, Kind] = {"id": int, "seed": int, "response": str, "references": list}
META: dict[str, Kind] = {"dataset": str, "rows": int, "sampling": dict, "seeds": list}


def read_generations(path: Path) -> tuple[dict[str, Any], dict[int, dict[int, dict[str, Any]]], list[int]]:
    """The meta file, the rows as seed -> id -> row, and the ids, which all seeds share, in order.

    Raises UserError, one line naming file and line, if a line is damaged, (seed, id) occurs twice, a seed
    lacks rows that another has, or the meta file promises other rows or seeds.
    """
    absent = "no such file; it is written with the generations, generate again"
    place = path.with_suffix(".meta.json")
    meta = read_object(place, META, absent, AGAIN)
    if not meta["seeds"] or not all_are(meta["seeds"], int) or len(set(meta["seeds"])) < len(meta["seeds"]):
        raise UserError(f"{place}: 'seeds' must be a list of different integers; {AGAIN}")
    rows = _rows(path)
    ids = _check(path, rows, meta)
    check_generations(path, meta, rows)
    return meta, rows, ids


def _rows(path: Path) -> dict[int, dict[int, dict[str, Any]]]:
    """seed -> id -> row."""
    rows: dict[int, dict[int, dict[str, Any]]] = {}
    first: dict[tuple[int, int], int] = {}
    for number, row in read_json_lines(path, ROW, "no such generations file", AGAIN):
        if not row["references"] or not all_are(row["references"], str):
            raise UserError(
                f"{path}:{number}: 'references' must be a list of at least one text; "
                "fix the test set and generate again"
            )
        key = (row["seed"], row["id"])
        if key in first:
            raise UserError(
                f"{path}:{number}: seed {key[0]}, id {key[1]} is in line {first[key]} already; {AGAIN}"
            )
        first[key] = number
        rows.setdefault(row["seed"], {})[row["id"]] = row
    return rows


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
