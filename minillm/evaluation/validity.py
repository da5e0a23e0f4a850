"""Stage `validity`: which responses are right answers, and how many of a prompt's right answers are reached.

For test sets whose references are all right answers of a prompt, as in the embedded world; needs no model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from minillm.data.embedded_corpus import NUMBERS, OPPOSITES, PEOPLE, THINGS
from minillm.data.open_world import UNITS
from minillm.evaluation.generations import read_generations
from minillm.evaluation.statistics import mean_and_error
from minillm.files import write_json

# What a response is, the first that holds.
RIGHT, UNFINISHED, WRONG_FACT, BROKEN_OFF, MIXED, OTHER = VERDICTS = (
    "right",
    "unfinished",
    "wrong fact",
    "form broken off",
    "forms mixed",
    "other",
)
SENTENCES = re.compile(r"(?<=[.!?])\s+")
WORDS = re.compile(r"\w+|[^\w\s]")
CLASSES = {
    "thing": THINGS,
    "kind": {kind for kind, _, _ in THINGS.values()},
    "colour": {colour for _, colour, _ in THINGS.values()},
    "place": {place for _, _, place in THINGS.values()},
    "person": PEOPLE,
    "number": NUMBERS,
    "units": UNITS,
    "property": {*OPPOSITES, *OPPOSITES.values()},
    "a": ("a", "an"),
}
CLASS_OF = {word.lower(): f"<{name}>" for name, words in CLASSES.items() for word in words}


def run_stage(*, generations: Path, out: Path) -> None:
    """Write precision, coverage and the verdicts on the responses in `generations` to the metric file `out`.

    "mean" is the precision: the share of responses that are right answers, in percent, seed by seed, with its
    standard error over the seeds.  "coverage" is the mean over prompts of the share of a prompt's K right
    answers that its responses under all seeds reach, in percent, with its standard error over prompts;
    "coverage_uniform" is what as many uniform draws from the right answers would reach on average.
    """
    meta, rows, ids = read_generations(generations)
    seeds = meta["seeds"]
    verdicts = {
        seed: [
            verdict(rows[seed][i]["response"], rows[seed][i]["references"], bool(rows[seed][i]["finished"]))
            for i in ids
        ]
        for seed in seeds
    }
    per_seed = {str(seed): _percent(v == RIGHT for v in verdicts[seed]) for seed in seeds}
    mean, error = mean_and_error(per_seed.values())
    reached, answers = [], []
    for i in ids:
        right = right_answers(rows[seeds[0]][i]["references"])
        answers.append(len(right))
        reached.append(len(right & {normal(rows[seed][i]["response"]) for seed in seeds}))
    shares = [100 * r / k for r, k in zip(reached, answers, strict=True)]
    coverage, coverage_error = mean_and_error(shares)
    counts = Counter(v for seed in seeds for v in verdicts[seed])
    write_json(
        out,
        {
            "metric": "validity",
            "dataset": meta["dataset"],
            "n": len(ids),
            "mean": mean,
            "standard_error": error,
            "over": "sampling seeds",
            "per_seed": per_seed,
            "coverage": coverage,
            "coverage_error": coverage_error,
            "coverage_uniform": math.fsum(uniform(k, len(seeds)) for k in answers) / len(answers),
            "verdicts": {name: counts[name] for name in VERDICTS},
            "responses": len(ids) * len(seeds),
            "ids": ids,
            "right_answers": answers,
            "reached": reached,
            "seeds": seeds,
            "sampling": meta["sampling"],
            "sources": [str(generations)],
        },
    )


def verdict(response: str, references: Sequence[str], finished: bool) -> str:
    """One of `VERDICTS`: what `response` is, if `references` are all right answers of its prompt.

    Unfinished: no EOS.  Wrong fact: a right answer but for words of the same class (things, people, numbers
    ...).  Form broken off: the beginning of a right answer, whatever its facts.  Forms mixed: only sentences
    of right answers, not those of one.
    """
    if not finished:
        return UNFINISHED
    if normal(response) in right_answers(references):
        return RIGHT
    shape, shapes = skeleton(response), [skeleton(text) for text in references]
    if shape in shapes:
        return WRONG_FACT
    if any(whole[: len(shape)] == shape for whole in shapes):
        return BROKEN_OFF
    sentences = {skeleton(part) for text in references for part in SENTENCES.split(text)}
    if all(skeleton(part) in sentences for part in SENTENCES.split(response.strip())):
        return MIXED
    return OTHER


def normal(text: str) -> str:
    """Text with its white space made single."""
    return " ".join(text.split())


def right_answers(references: Sequence[str]) -> set[str]:
    """The different right answers."""
    return {normal(text) for text in references}


@cache
def skeleton(text: str) -> tuple[str, ...]:
    """Words and marks of a text, those of the world replaced by their class."""
    return tuple(CLASS_OF.get(word.lower(), word.lower()) for word in WORDS.findall(text))


def uniform(k: int, draws: int) -> float:
    """Expected share of `k` things that `draws` uniform draws reach, in percent."""
    return 100 * (1 - (1 - 1 / k) ** draws)


def _percent(hits: Iterable[bool]) -> float:
    values = list(hits)
    return 100 * sum(values) / len(values)
