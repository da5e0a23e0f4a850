"""Means and standard errors, and what a standard error ranges over."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping

import numpy as np


def mean_and_error(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean, and standard error of the mean (sample standard deviation / sqrt(n)); None for fewer than two values.

    Raises ValueError for no value.
    """
    values = list(values)
    if not values:
        raise ValueError("no value to take the mean of")
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def pooled(per_seed: Mapping[int, Mapping[int, float]]) -> tuple[float, float | None, str]:
    """Mean, standard error and the seeds behind them, from training seed -> sampling seed -> value.

    The mean is that of the training seeds' means.  With several training seeds the error ranges over those means: the sampling
    seeds of a training seed share one set of weights and are no independent repetitions of the training.  With one training
    seed it ranges over its sampling seeds; with one of each it is None.

    The text reads like "5 sampling seeds, 1 training seed".
    Raises ValueError for no training seed, or one without a value.
    """
    means = [mean_and_error(values.values())[0] for values in per_seed.values()]
    within = sorted({len(values) for values in per_seed.values()})
    if len(per_seed) == 1:
        mean, error = mean_and_error(next(iter(per_seed.values())).values())
        return mean, error, f"{_counted(within[0], 'sampling seed')}, 1 training seed"
    mean, error = mean_and_error(means)
    each = _counted(within[0], "sampling seed") if len(within) == 1 else f"{within[0]} to {within[-1]} sampling seeds"
    return mean, error, f"{_counted(len(means), 'training seed')}, {each} each"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def bootstrap_error(statistic: Callable[[np.ndarray], float], rows: int, resamples: int = 1000, seed: int = 0) -> float | None:
    """Standard deviation of `statistic` (of row numbers, (rows,) int) over resamples of the rows with replacement; None below two rows.

    Efron's bootstrap standard error; the same numbers for the same `rows` and `seed`.
    """
    if rows < 2:
        return None
    generator = np.random.Generator(np.random.Philox(seed))
    values = [statistic(generator.integers(rows, size=rows)) for _ in range(resamples)]
    return float(np.std(values, ddof=1))
