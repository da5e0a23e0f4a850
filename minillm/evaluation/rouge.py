"""Stage `rouge`: one generations file to one metric file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minillm.config.measurements.rouge import RougeSettings
from minillm.errors import UserError
from minillm.evaluation.records import check_generations
from minillm.evaluation.row_scores import count_and_first, scored
from minillm.files import write_json
from minillm.readers import Kind, all_are, read_json_lines, read_object
from minillm.scores import Words, exact_match, has_tokens, rouge_l

AGAIN = "remove it and generate again"
ROW: dict[str, Kind] = {"id": int, "seed": int, "response": str, "references": list}
META: dict[str, Kind] = {"dataset": str, "rows": int, "sampling": dict, "seeds": list}


def run_stage(settings: RougeSettings | None = None, *, generations: Path, out: Path) -> None:
    """Write ROUGE-L and exact match of the responses in `generations` (with its FILE.meta.json) to `out`.

    "mean" is the mean of the seeds' means over rows (0 to 100); "standard_error" and "exact_match_error" are
    over the seeds' means (null for one seed); "scores" has each row's ROUGE-L in the order of "ids".  Without
    `settings` words are counted as in the paper.  "without_tokens" counts the rows that then score 0 whatever
    the response, if there are any: their references have no word in a script that is counted.  Raises
    UserError, one line naming file and line, if a line is damaged, (seed, id) occurs twice, a seed lacks rows
    that another has, or the meta file promises other rows or seeds.
    """
    words: Words = settings.tokenizer if settings else "rouge_score"
    meta, rows, ids = read_generations(generations)
    rouge = scored("rougeL", meta, rows, ids, lambda row: rouge_l(row["response"], row["references"], words))
    exact = scored("", meta, rows, ids, lambda row: exact_match(row["response"], row["references"]))
    write_json(
        out,
        {
            **rouge,
            "exact_match": exact["mean"],
            "exact_match_error": exact["standard_error"],
            "sampling": meta["sampling"],
            "sources": [str(generations)],
            **how_counted(words, without_words(meta, rows, ids, words)),
        },
    )


def without_words(
    meta: dict[str, Any], rows: dict[int, dict[int, dict[str, Any]]], ids: list[int], words: Words
) -> list[int]:
    """Ids of the rows whose references have no word."""
    first = rows[meta["seeds"][0]]
    return [id_ for id_ in ids if not has_tokens(first[id_]["references"], words)]


def how_counted(words: Words, without: list[int]) -> dict[str, Any]:
    """What is only in a metric file if it is not as usual: how words are counted, and rows without any."""
    return {
        **({} if words == "rouge_score" else {"tokenizer": words}),
        **({"without_tokens": count_and_first(without)} if without else {}),
    }


def read_generations(path: Path) -> tuple[dict[str, Any], dict[int, dict[int, dict[str, Any]]], list[int]]:
    """The meta file, the rows as seed -> id -> row, and the ids, which all seeds share, in order.

    Raises UserError as `run_stage` does.
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
