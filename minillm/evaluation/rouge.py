"""Stage `rouge`: one generations file to one metric file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minillm.config.measurements.rouge import RougeSettings
from minillm.evaluation.generations import read_generations
from minillm.evaluation.row_scores import count_and_first, scored
from minillm.files import write_json
from minillm.scores import Words, exact_match, has_tokens, rouge_l


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
