"""Stage `lengths`: ROUGE-L by the length of the first reference, and the response lengths of each bucket."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from minillm.config.measurements.lengths import LengthsSettings
from minillm.counts import token_counter
from minillm.errors import UserError
from minillm.evaluation.generations import read_generations
from minillm.evaluation.records import check_scores
from minillm.evaluation.statistics import mean_and_error
from minillm.files import check_record, write_json
from minillm.readers import all_are, are_tokens, read_object


def buckets(edges: tuple[int, ...]) -> list[tuple[int, int | None]]:
    """(lowest, highest) length of each bucket, both included; the last is open."""
    lows = [0, *(edge + 1 for edge in edges)]
    return list(zip(lows, [*edges, None], strict=True))


def run_stage(settings: LengthsSettings, *, metric: Path, generations: Path, data: Path, out: Path) -> None:
    """Write the scores of a ROUGE-L `metric` file by bucket, with lengths from its `generations`, to `out`.

    Lengths of references and responses are in tokens of the `data` folder's tokenizer, without special
    tokens.  A row's score is its mean over the sampling seeds; a bucket's standard error is over its rows
    (null for fewer than two).  Raises UserError if the two files differ in rows or seeds.
    """
    scored = read_metric(metric)
    meta, rows, ids = read_generations(generations)
    if ids != scored["ids"] or sorted(map(str, rows)) != sorted(scored["scores"]):
        raise UserError(f"{metric}: its rows or seeds are not those of {generations}; score again")
    count = token_counter(data / "tokenizer")
    first = meta["seeds"][0]
    reference_tokens = [count(rows[first][id_]["references"][0]) for id_ in ids]
    responses = {
        seed: [_response_tokens(rows[seed][id_], generations) for id_ in ids] for seed in meta["seeds"]
    }
    response_tokens = [math.fsum(each) / len(each) for each in zip(*responses.values(), strict=True)]
    scores = [math.fsum(each) / len(each) for each in zip(*scored["scores"].values(), strict=True)]
    mean, error = mean_and_error(scores)

    def bucket(low: int, high: int | None) -> dict[str, Any]:
        inside = [i for i, n in enumerate(reference_tokens) if n >= low and (high is None or n <= high)]
        return {
            "low": low,
            "high": high,
            **_summary(inside, scores, scored["scores"], response_tokens, reference_tokens),
        }

    write_json(
        out,
        {
            "metric": "lengths",
            "dataset": meta["dataset"],
            "n": len(ids),
            "mean": mean,
            "standard_error": error,
            "over": "prompts",
            "counted_by": "the run's tokenizer, first reference",
            "seeds": meta["seeds"],
            "buckets": [bucket(low, high) for low, high in buckets(settings.edges)],
            "ids": ids,
            "scores": scores,
            "reference_tokens": reference_tokens,
            "response_tokens": response_tokens,
            "sampling": meta["sampling"],
            "sources": [str(metric), str(generations), str(data)],
        },
    )


def _summary(
    inside: list[int],
    scores: list[float],
    per_seed: dict[str, list[float]],
    response_tokens: list[float],
    reference_tokens: list[int],
) -> dict[str, Any]:
    """The values of one bucket; every mean is null if it is empty."""
    if not inside:
        names = ("mean", "standard_error", "mean_response_tokens", "mean_reference_tokens", "length_drift")
        return {"n": 0, **dict.fromkeys(names), "per_seed": dict.fromkeys(per_seed)}

    def mean_of(values: list[Any]) -> float:
        return math.fsum(values[i] for i in inside) / len(inside)

    mean, error = mean_and_error(scores[i] for i in inside)
    ours, theirs = mean_of(response_tokens), mean_of(reference_tokens)
    return {
        "n": len(inside),
        "mean": mean,
        "standard_error": error,
        "mean_response_tokens": ours,
        "mean_reference_tokens": theirs,
        "length_drift": ours / theirs if theirs else None,
        "per_seed": {seed: mean_of(values) for seed, values in per_seed.items()},
    }


def _response_tokens(row: dict[str, Any], where: Path) -> int:
    """Number of tokens of a response without its final EOS."""
    return len(response_of(row, where))


def response_of(row: dict[str, Any], where: Path) -> list[int]:
    """Token ids of a response without its final EOS.  Raises UserError if the row has none."""
    tokens: Any = row.get("response_tokens")
    finished = row.get("finished")
    if not are_tokens(tokens) or not isinstance(finished, bool):
        raise UserError(
            f"{where}: seed {row['seed']}, id {row['id']}: 'response_tokens' or 'finished' is missing or of "
            "the wrong type; generate again"
        )
    return list(tokens[: len(tokens) - finished])


def read_metric(path: Path) -> dict[str, Any]:
    """A ROUGE-L metric file.  Raises UserError if it is missing or damaged."""
    again = "remove it and score again"
    metric = read_object(
        path, {"ids": list, "scores": dict}, "no such metric file; score the generations first", again
    )
    scores = metric["scores"]
    if not scores or not all(
        all_are(values, (int, float)) and len(values) == len(metric["ids"]) for values in scores.values()
    ):
        raise UserError(f"{path}: not one score per row; {again}")
    check_record(metric, path, again)
    try:
        check_scores(metric)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged: {error!r}; {again}") from None
    return metric
