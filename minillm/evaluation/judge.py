"""Stage `judge`: a judge scores response and reference from 1 to 10, in both orders.

The result is the ratio of the totals.  Each verdict is a file in a cache that no rule owns, so that none is
asked for twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minillm.config.measurements.judge import JudgeSettings
from minillm.errors import UserError
from minillm.evaluation.answers import Answers, question, read_answers
from minillm.evaluation.judges import JudgeClient, JudgePrompt, make_judge
from minillm.evaluation.statistics import bootstrap_error
from minillm.files import write_json

# The wording of Peng et al. 2023, "Instruction Tuning with GPT-4", which the paper uses; the layout is that
# of their code.
REQUEST = (
    "We would like to request your feedback on the performance of two AI assistants in response to the "
    "user instruction and input displayed above. Please rate the helpfulness, relevance, accuracy, and "
    "level of detail of their responses. Each assistant receives an overall score on a scale of 1 to "
    "10, where a higher score indicates better overall performance. Please first output a single line "
    "containing only two values indicating the scores for Assistant 1 and 2, respectively. The two "
    "scores are separated by a space. In the subsequent line, please provide a comprehensive "
    "explanation of your evaluation, avoiding any potential bias and ensuring that the order in which "
    "the responses were presented does not affect your judgment."
)
LAYOUT = (
    "[Instruction]\n{question}\n\n"
    "[The Start of Assistant 1's Answer]\n{first}\n\n[The End of Assistant 1's Answer]\n\n"
    "[The Start of Assistant 2's Answer]\n{second}\n\n[The End of Assistant 2's Answer]\n\n"
    "[System]\n{request}\n"
)
ORDERS = ("response_first", "reference_first")
RESAMPLES = 1000
SCORES = re.compile(r"\s*(\d+(?:\.\d+)?)[\s,;]+(\d+(?:\.\d+)?)\s*")


def run_stage(settings: JudgeSettings, *, generations: Path, cache: Path, out: Path) -> None:
    """Write scores of the responses in `generations` to `out`; verdicts not in `cache` are asked for."""
    answers = read_answers(generations)
    seeds = answers.seeds[: settings.judge.seeds]
    ids = answers.ids[: settings.judge.rows or None]
    judge = make_judge(settings.judge, settings.precision)
    questions = {
        (seed, id_, order): _question(answers.rows[seed][id_], order, judge)
        for seed in seeds
        for id_ in ids
        for order in ORDERS
    }
    verdicts = collect_verdicts(judge, list(questions.values()), cache, settings.judge.rereads)
    scores = {place: verdicts[q.key]["scores"] for place, q in questions.items()}
    write_json(out, _metric(settings, answers, judge, seeds, ids, scores))


def request(asked: str, first: str, second: str) -> str:
    """The judge's prompt on two answers."""
    return LAYOUT.format(question=asked, first=first, second=second, request=REQUEST)


def _question(row: dict[str, Any], order: str, judge: JudgeClient) -> JudgePrompt:
    pair = (row["response"].strip(), row["references"][0].strip())
    first, second = pair if order == ORDERS[0] else pair[::-1]
    prompt = request(question(row["prompt"]), first, second)
    # The stand-in's scores depend on all references, which its prompt does not show.
    shown = row["references"] if judge.identity["kind"] == "stand-in" else []
    text = json.dumps([judge.identity, prompt, shown], sort_keys=True)
    return JudgePrompt(
        hashlib.sha256(text.encode()).hexdigest(), prompt, first, second, tuple(row["references"])
    )


def parse_scores(reply: str) -> tuple[float, float] | None:
    """The two scores in the first non-blank line; None if it has anything else or scores not from 1 to 10."""
    first = next((line for line in reply.splitlines() if line.strip()), "")
    match = SCORES.fullmatch(first)
    if not match:
        return None
    a, b = float(match[1]), float(match[2])
    return (a, b) if 1 <= a <= 10 and 1 <= b <= 10 else None


# --- the cache
def verdict_file(cache: Path, key: str) -> Path:
    """The file of a verdict."""
    return Path(cache) / key[:2] / f"{key}.json"


def collect_verdicts(
    judge: JudgeClient, questions: Sequence[JudgePrompt], cache: Path, rereads: int
) -> dict[str, dict[str, Any]]:
    """key -> verdict of each question, from `cache` or from the judge.

    A verdict is written as soon as its reply is there.  One whose replies have no scores is asked for again
    up to `rereads` times and is then final with "scores": null.  Raises UserError (keeping the verdicts so
    far) if the judge cannot be asked any more.
    """
    wanted = {q.key: q for q in questions}
    verdicts = {key: _read(verdict_file(cache, key), key) for key in wanted}
    left = [q for key, q in wanted.items() if not _final(verdicts[key], rereads)]
    cached = len(wanted) - len(left)
    print(
        f"judge: {len(wanted)} verdicts wanted, {cached} of them cached, {len(left)} calls to make",
        flush=True,
    )
    bar = tqdm(total=len(left), unit="verdict", disable=None)
    while left:
        attempts = [dataclasses.replace(q, attempt=len(verdicts[q.key]["replies"])) for q in left]
        for asked, reply in judge.replies(attempts):
            verdict = verdicts[asked.key]
            scores = parse_scores(reply)
            verdict["replies"].append(reply)
            verdict["scores"] = list(scores) if scores else None
            write_json(
                verdict_file(cache, asked.key), {**verdict, "judge": judge.identity, "prompt": asked.prompt}
            )
            bar.update(_final(verdict, rereads))
        left = [q for q in left if not _final(verdicts[q.key], rereads)]
    bar.close()
    return verdicts


def _final(verdict: dict[str, Any], rereads: int) -> bool:
    return verdict["scores"] is not None or len(verdict["replies"]) > rereads


def _read(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        return {"key": key, "scores": None, "replies": []}
    try:
        verdict = json.loads(path.read_text())
        replies, scores = verdict["replies"], verdict["scores"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: a damaged verdict; remove it and it is asked for again") from None
    return {"key": key, "scores": scores, "replies": list(replies)}


# --- the result
def _metric(
    settings: JudgeSettings,
    answers: Answers,
    judge: JudgeClient,
    seeds: list[int],
    ids: list[int],
    scores: dict[tuple[int, int, str], list[float] | None],
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    missing = []
    for seed in seeds:
        for id_ in ids:
            a, b = (scores[seed, id_, order] for order in ORDERS)
            missing += [
                {"seed": seed, "id": id_, "order": o}
                for o, s in zip(ORDERS, (a, b), strict=True)
                if s is None
            ]
            if a and b:
                rows.append({"seed": seed, "id": id_, "response": [a[0], b[1]], "reference": [a[1], b[0]]})
    if not rows:
        raise UserError(
            f"{answers.path}: no row has two readable verdicts of the judge; read its replies in the cache"
        )
    # (rows, orders) each
    response, reference = (np.array([row[key] for row in rows]) for key in ("response", "reference"))
    prompts = sorted({row["id"] for row in rows})
    # Sums over each prompt's seeds: response, reference.
    totals = {id_: np.zeros(2) for id_ in prompts}
    for row in rows:
        totals[row["id"]] += (sum(row["response"]), sum(row["reference"]))
    table = np.array([totals[id_] for id_ in prompts])
    error = bootstrap_error(lambda chosen: _ratio(*table[chosen].sum(0)), len(prompts), RESAMPLES)
    return {
        "metric": "judge",
        "dataset": answers.dataset,
        "n": len(prompts),
        "seeds": seeds,
        "mean": _ratio(response.sum(), reference.sum()),
        "standard_error": error,
        "over": f"bootstrap over prompts ({RESAMPLES} resamples)",
        "stand_in": judge.identity["kind"] == "stand-in",
        "judge": judge.identity,
        "totals": {"response": float(response.mean(1).sum()), "reference": float(reference.mean(1).sum())},
        "by_order": {
            order: _ratio(response[:, i].sum(), reference[:, i].sum()) for i, order in enumerate(ORDERS)
        },
        "rows": rows,
        "missing": missing,
        "request": REQUEST,
        "sources": [str(answers.path)],
    }


def _ratio(response: float, reference: float) -> float:
    """In percent; never divides by 0, since a reference gets at least 1 of 10 for each row."""
    return float(100.0 * response / reference)
