"""ExAccErr: how much more of the distance to the teacher piles up on the student's own prefixes (appendix B.5 of the paper).

Arrays are float64, (prompts, positions); column t - 1 is position t, whose prefix holds t - 1 tokens of a response.  At every
position KL(p || q) is summed over the vocabulary; R(l) adds it up over positions t <= l on prefixes that the student sampled,
l eps(l) on prefixes that the teacher sampled, and ExAccErr(l) = (R(l) - l eps(l)) / (l eps(l)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDING = (
    1e-7  # nats a position: a teacher and a student as close as this are the same model but for rounding
)
RELEASED_FLOOR = 1e-3  # what the published script adds to a number of responses, so as never to divide by 0


@dataclass(frozen=True)
class Totals:
    """Of each prompt and position: the sum of KL(p || q) over the prompt's responses that reach it, and their number."""

    kl: np.ndarray
    alive: np.ndarray


def totals(
    responses: Sequence[Sequence[np.ndarray]],
    positions: int,
    weights: Sequence[Sequence[float]] | None = None,
) -> Totals:
    """Of the KL at each token of each response of each prompt, (length,) each; a response has at least one token.

    `weights`, one a response (default: 1), make an exact expectation out of all possible responses.
    """
    kl, alive = np.zeros((len(responses), positions)), np.zeros((len(responses), positions))
    for i, rows in enumerate(responses):
        for j, values in enumerate(rows):
            weight = 1.0 if weights is None else weights[i][j]
            kl[i, : len(values)] += weight * np.asarray(values, dtype=np.float64)
            alive[i, : len(values)] += weight
    return Totals(kl, alive)


def mean_kl(found: Totals, times: np.ndarray, *, finished: str, semantics: str) -> np.ndarray:
    """Mean KL at each position where prompt i comes `times`[..., i] times, (..., positions); NaN where no response is left.

    "alive": over the responses that reach the position.  "zero": over all, one that has ended counting 0.  "released": of each
    prompt over the responses that reach the position, 0 where there is none, then over prompts; the first position is left out.
    """
    if semantics == "released":
        above, below = (found.kl / (found.alive + RELEASED_FLOOR))[:, 1:], np.ones_like(found.kl[:, 1:])
    elif finished == "zero":
        above, below = found.kl, np.broadcast_to(found.alive[:, :1], found.kl.shape)
    else:
        above, below = found.kl, found.alive
    with np.errstate(invalid="ignore"):
        result: np.ndarray = (times @ above) / (times @ below)
    return result


@dataclass(frozen=True)
class Curve:
    """R(l), eps(l) and ExAccErr(l) in per cent, (..., lengths), l = 1, 2, ...; ExAccErr is NaN where eps(l) is 0."""

    r: np.ndarray
    epsilon: np.ndarray
    error: np.ndarray


def curve(student: Totals, teacher: Totals, times: np.ndarray, *, finished: str, semantics: str) -> Curve:
    """The curve from KL on the student's and on the teacher's prefixes, where prompt i comes `times`[..., i] times."""
    r = mean_kl(student, times, finished=finished, semantics=semantics).cumsum(-1)
    base = mean_kl(teacher, times, finished=finished, semantics=semantics).cumsum(-1)  # l eps(l)
    epsilon = base / np.arange(1, base.shape[-1] + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(epsilon > ROUNDING, (r - base) / base * 100.0, np.nan)
    return Curve(r, epsilon, error)


def last_length(student: Totals, teacher: Totals, least: float, *, semantics: str) -> int:
    """The last l at which at least `least` responses of either kind are alive; 0 where there is none."""
    first = 1 if semantics == "released" else 0
    alive = np.minimum(student.alive.sum(0), teacher.alive.sum(0))[first:]
    return int((alive >= least).sum())  # fewer and fewer are alive


def bootstrap(
    student: Totals, teacher: Totals, resamples: int, seed: int, *, finished: str, semantics: str
) -> np.ndarray:
    """ExAccErr of `resamples` draws of the prompts with replacement, both kinds of prefixes of a prompt together: (resamples, lengths)."""
    prompts = len(student.kl)
    generator = np.random.Generator(np.random.Philox(key=[seed, prompts]))
    times = generator.multinomial(prompts, np.full(prompts, 1.0 / prompts), size=resamples).astype(np.float64)
    return curve(student, teacher, times, finished=finished, semantics=semantics).error


def band(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of each length, (lengths,) each; NaN where less than half of the draws have a value."""
    enough = np.isfinite(draws).mean(0) >= 0.5
    low, high = np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    if enough.any():
        ends = [50 * (1 - level), 50 * (1 + level)]
        low[enough], high[enough] = np.nanpercentile(draws[:, enough], ends, axis=0)
    return low, high
