"""ExAccErr: how much more error accumulates on the student's own prefixes (appendix B.5 of the paper).

Arrays are float64, (prompts, positions); column t - 1 is position t, whose prefix has t - 1 tokens of a
response.  KL(p || q) is summed over the vocabulary at every position.  R(l) sums it over positions t <= l on
prefixes sampled by the student, l eps(l) on prefixes sampled by the teacher, and ExAccErr(l) = (R(l) - l
eps(l)) / (l eps(l)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Nats per position: a teacher and a student this close are the same model except for rounding.
ROUNDING = 1e-7
# What the published script adds to a number of responses so that it never divides by 0.
RELEASED_FLOOR = 1e-3


@dataclass(frozen=True)
class Totals:
    """Per prompt and position: the sum of KL(p || q) over the responses that reach it, and their count."""

    kl: np.ndarray
    alive: np.ndarray


def totals(
    responses: Sequence[Sequence[np.ndarray]],
    positions: int,
    weights: Sequence[Sequence[float]] | None = None,
) -> Totals:
    """Sum the KL at each token of each response of each prompt, (length,) each; no response may be empty.

    `weights`, one per response (default: 1), turn the sum over all possible responses into an exact
    expectation.
    """
    kl, alive = np.zeros((len(responses), positions)), np.zeros((len(responses), positions))
    for i, rows in enumerate(responses):
        for j, values in enumerate(rows):
            weight = 1.0 if weights is None else weights[i][j]
            kl[i, : len(values)] += weight * np.asarray(values, dtype=np.float64)
            alive[i, : len(values)] += weight
    return Totals(kl, alive)


def mean_kl(sums: Totals, times: np.ndarray, *, finished: str, semantics: str) -> np.ndarray:
    """Mean KL at each position, (..., positions), if prompt i comes `times`[..., i] times.

    NaN at positions that no response reaches.  "alive": over the responses that reach the position.  "zero":
    over all, with 0 for those that have ended.  "released": per prompt over the responses that reach the
    position, 0 if none does, then over prompts; without the first position.
    """
    if semantics == "released":
        above, below = (sums.kl / (sums.alive + RELEASED_FLOOR))[:, 1:], np.ones_like(sums.kl[:, 1:])
    elif finished == "zero":
        above, below = sums.kl, np.broadcast_to(sums.alive[:, :1], sums.kl.shape)
    else:
        above, below = sums.kl, sums.alive
    with np.errstate(invalid="ignore"):
        result: np.ndarray = (times @ above) / (times @ below)
    return result


@dataclass(frozen=True)
class Curve:
    """R(l), eps(l) and ExAccErr(l) in percent, (..., lengths), l = 1, 2, ...; NaN if eps(l) is 0."""

    r: np.ndarray
    epsilon: np.ndarray
    error: np.ndarray


def curve(student: Totals, teacher: Totals, times: np.ndarray, *, finished: str, semantics: str) -> Curve:
    """The curve from KL on the student's and the teacher's prefixes; prompt i comes `times`[..., i] times."""
    r = mean_kl(student, times, finished=finished, semantics=semantics).cumsum(-1)
    # l eps(l)
    base = mean_kl(teacher, times, finished=finished, semantics=semantics).cumsum(-1)
    epsilon = base / np.arange(1, base.shape[-1] + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(epsilon > ROUNDING, (r - base) / base * 100.0, np.nan)
    return Curve(r, epsilon, error)


def last_length(student: Totals, teacher: Totals, least: float, *, semantics: str) -> int:
    """The last l at which at least `least` responses of either kind are alive; 0 if there is none."""
    first = 1 if semantics == "released" else 0
    alive = np.minimum(student.alive.sum(0), teacher.alive.sum(0))[first:]
    # The number alive never grows with l.
    return int((alive >= least).sum())


def bootstrap(
    student: Totals, teacher: Totals, resamples: int, seed: int, *, finished: str, semantics: str
) -> np.ndarray:
    """ExAccErr of `resamples` draws of prompts, each with both kinds of prefixes: (resamples, lengths)."""
    prompts = len(student.kl)
    generator = np.random.Generator(np.random.Philox(key=[seed, prompts]))
    times = generator.multinomial(prompts, np.full(prompts, 1.0 / prompts), size=resamples).astype(np.float64)
    return curve(student, teacher, times, finished=finished, semantics=semantics).error


def band(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of each length, (lengths,) each; NaN if under half of the draws have a value."""
    enough = np.isfinite(draws).mean(0) >= 0.5
    low, high = np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    if enough.any():
        ends = [50 * (1 - level), 50 * (1 + level)]
        low[enough], high[enough] = np.nanpercentile(draws[:, enough], ends, axis=0)
    return low, high
