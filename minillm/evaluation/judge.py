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
from minillm.evaluation.answers import Answers, question_of, read_answers
from minillm.evaluation.judges import JudgeClient, JudgePrompt, make_judge
from minillm.evaluation.statistics import bootstrap_error
from minillm.files import write_json
from minillm.readers import Kind, read_object

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
NUMBER = r"(\d+(?:\.\d+)?)"
# Forms of the line of scores: as asked for; each out of ten; each after the name that the prompt gives it.
SCORES = tuple(
    re.compile(form.replace("N", NUMBER), re.IGNORECASE)
    for form in (
        r"N[\s,;]+N",
        r"N ?/ ?10[\s,;]+N ?/ ?10",
        r"Assistant 1 ?: ?N(?: ?/ ?10)?[\s,;]+Assistant 2 ?: ?N(?: ?/ ?10)?",
    )
)
FENCE = re.compile(r"\s*(```|~~~)\w*\s*")
THOUGHT_ENDS = "</think>"


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
    prompt = request(question_of(row), first, second)
    # The stand-in's scores depend on all references, which its prompt does not show.
    shown = row["references"] if judge.identity["kind"] == "stand-in" else []
    text = json.dumps([judge.identity, prompt, shown], sort_keys=True)
    return JudgePrompt(
        hashlib.sha256(text.encode()).hexdigest(), prompt, first, second, tuple(row["references"])
    )


def parse_scores(reply: str) -> tuple[float, float] | None:
    """The two scores in the first line of the reply; None if it has anything else or scores not from 1 to 10.

    Blank lines, the beginning of a code fence and Markdown's marks of bold and code do not count, nor does a
    <think> block before the line.  Where it is not clear which line that is, two different ones give None.
    """
    found = _candidates(reply)
    return found.pop() if len(found) == 1 else None


def _candidates(reply: str) -> set[tuple[float, float]]:
    # Some endpoints leave out the opening tag; and a judge may write of a closing one in an answer.
    parts = reply.split(THOUGHT_ENDS)
    if reply.lstrip().startswith("<think>"):
        parts = parts[1:]
    return {scores for part in parts if (scores := _first_line(part)) is not None}


def _first_line(text: str) -> tuple[float, float] | None:
    line = next((line for line in text.splitlines() if line.strip() and not FENCE.fullmatch(line)), "")
    # Not removed: "1*0" must not become 10.
    line = re.sub(r"\*+|`+|__", " ", line)
    line = re.sub(r"\s+([/,;:])", r"\1", " ".join(line.split()))
    match = next((match for form in SCORES if (match := form.fullmatch(line))), None)
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
    up to `rereads` times and is then final with "scores": null; one that a filter of the endpoint refuses is
    final at once.  Raises UserError (keeping the verdicts so far) if the judge cannot be asked any more, or
    if a verdict in the cache is damaged or not an answer to its question.
    """
    wanted = {q.key: q for q in questions}
    verdicts = {key: _read(verdict_file(cache, key), q, judge) for key, q in wanted.items()}
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
            if reply is None:
                verdict["filtered"] = True
            else:
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
    return verdict["scores"] is not None or "filtered" in verdict or len(verdict["replies"]) > rereads


def _read(path: Path, asked: JudgePrompt, judge: JudgeClient) -> dict[str, Any]:
    """The verdict of a question in the cache, or an empty one.

    Its scores are read from its replies, so that a form of them that is understood now was not paid for in
    vain.  Raises UserError, one line.
    """
    empty: dict[str, Any] = {"key": asked.key, "scores": None, "replies": []}
    if not path.exists():
        return empty
    again = "remove it and it is asked for again"
    keys: dict[str, Kind] = {
        "key": str,
        "prompt": str,
        "judge": dict,
        "replies": list,
        "scores": (list, type(None)),
    }
    verdict = read_object(path, keys, "no such verdict", f"a damaged verdict; {again}")
    if (verdict["key"], verdict["prompt"], verdict["judge"]) != (asked.key, asked.prompt, judge.identity):
        raise UserError(f"{path}: a verdict on another question or by another judge; {again}")
    replies, scores = verdict["replies"], verdict["scores"]
    if not all(isinstance(reply, str) for reply in replies):
        raise UserError(f"{path}: a reply that is not a text; a damaged verdict; {again}")
    read = [parsed for reply in replies if (parsed := parse_scores(reply))]
    if scores is not None and scores not in map(list, _candidates(replies[-1] if replies else "")):
        raise UserError(f"{path}: scores {scores} are not those of its reply; {again}")
    kept = {**empty, "replies": replies, "scores": list(read[0]) if scores is None and read else scores}
    return {**kept, "filtered": True} if verdict.get("filtered") is True else kept


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
