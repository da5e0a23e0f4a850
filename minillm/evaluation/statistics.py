"""Means and standard errors, what they range over, and which differences are more than chance."""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
# Numbers in one batch of a bootstrap: 32 MB.
DRAWS = 4_000_000


def mean_and_error(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and its standard error (sample standard deviation / sqrt(n)); None for fewer than two values.

    Raises ValueError if there are no values.
    """
    values = list(values)
    if not values:
        raise ValueError("no value to take the mean of")
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def pooled(per_seed: Mapping[int, Mapping[int, float]]) -> tuple[float, float | None, str]:
    """Mean, standard error and the seeds behind them, from training seed -> sampling seed -> value.

    The mean is that of the training seeds' means.  With several training seeds the error ranges over those
    means: the sampling seeds of a training seed share one set of weights and are not independent repetitions
    of the training.  With one training seed it ranges over its sampling seeds; with one of each it is None.

    The text reads like "5 sampling seeds, 1 training seed".
    Raises ValueError if there is no training seed, or one without values.
    """
    means = [mean_and_error(values.values())[0] for values in per_seed.values()]
    within = sorted({len(values) for values in per_seed.values()})
    if len(per_seed) == 1:
        mean, error = mean_and_error(next(iter(per_seed.values())).values())
        return mean, error, f"{_counted(within[0], 'sampling seed')}, 1 training seed"
    mean, error = mean_and_error(means)
    each = (
        _counted(within[0], "sampling seed")
        if len(within) == 1
        else f"{within[0]} to {within[-1]} sampling seeds"
    )
    return mean, error, f"{_counted(len(means), 'training seed')}, {each} each"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def bootstrap_error(
    statistic: Callable[[np.ndarray], float], rows: int, resamples: int = 1000, seed: int = 0
) -> float | None:
    """Standard deviation of `statistic` over resamples of the rows; None below two rows.

    Efron's bootstrap standard error.  `statistic` takes row numbers, (rows,) int, drawn with replacement; the
    same numbers for the same `rows` and `seed`.
    """
    if rows < 2:
        return None
    generator = np.random.Generator(np.random.Philox(seed))
    values = [statistic(generator.integers(rows, size=rows)) for _ in range(resamples)]
    return float(np.std(values, ddof=1))


@dataclass(frozen=True)
class Components:
    """Variances, in the square of the values' unit; None if the data cannot tell."""

    # Of the training seeds' true means.
    between: float | None
    # Of a sampling seed's value around the mean of its training seed.
    within: float | None


def components(per_seed: Mapping[int, Mapping[int, float]]) -> Components:
    """Variance between and within training seeds (training seed -> sampling seed -> value), by moments.

    One-way random effects, unbalanced (Searle, Casella and McCulloch 1992, section 3.6): for a training seeds
    with n_i values, N in all, within = MSW and between = (MSB - MSW) / n0, where n0 = (N - sum n_i^2 / N) /
    (a - 1); a negative estimate becomes 0.  Within needs two sampling seeds of one training seed; between
    needs that and two training seeds.
    """
    groups = [list(values.values()) for values in per_seed.values() if values]
    count = sum(map(len, groups))
    if count == len(groups):
        return Components(None, None)
    means = [math.fsum(group) / len(group) for group in groups]
    inside = math.fsum(
        (value - mean) ** 2 for group, mean in zip(groups, means, strict=True) for value in group
    )
    within = inside / (count - len(groups))
    if len(groups) < 2:
        return Components(None, within)
    grand = math.fsum(value for group in groups for value in group) / count
    outside = math.fsum(len(group) * (mean - grand) ** 2 for group, mean in zip(groups, means, strict=True))
    size = (count - sum(len(group) ** 2 for group in groups) / count) / (len(groups) - 1)
    return Components(max(0.0, (outside / (len(groups) - 1) - within) / size), within)


def bootstrap_mean(
    values: Sequence[float], name: str, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean of independent `values`; None for fewer than two.

    `name` is the seed: the same name and values give the same interval.
    """
    if len(values) < 2:
        return None
    low, high = np.quantile(_means(values, name, resamples), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _means(values: Sequence[float], name: str, resamples: int) -> np.ndarray:
    """Means of `resamples` resamples, (resamples,)."""
    # Here and below: it takes a second to import, and the errors that most metrics need do without it.
    from scipy import stats

    result = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=resamples,
        batch=max(1, DRAWS // len(values)),
        method="percentile",
        rng=np.random.default_rng(zlib.crc32(name.encode())),
    )
    return result.bootstrap_distribution


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same prompts."""

    # Mean of the first's scores minus that of the second's.
    difference: float
    low: float
    high: float
    # Two-sided.
    p: float


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    name: str,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Difference of two methods' mean scores on the same prompts, with interval and two-sided p.

    Prompts are resampled.  `first` and `second` have one score per prompt (averaged over seeds), in the same
    order; the interval is by percentiles.  p is twice the smaller share of resampled differences at or beyond
    0, with one more resample counted at 0 (Davison and Hinkley 1997, section 4.4): at least 2 / (resamples +
    1), at most 1.  The seeds are taken as they are: this says nothing about training again.  Raises
    ValueError if the lengths differ or are below two.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"{len(first)} and {len(second)} scores: a paired comparison needs the same prompts, two or more"
        )
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    means = _means(list(differences), name, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return Comparison(
        float(differences.mean()), float(low), float(high), min(1.0, 2 * float(tail + 1) / (resamples + 1))
    )


@dataclass(frozen=True)
class Part:
    """One of the independent parts whose sum is the variance of a mean (or of a difference of means)."""

    variance: float
    # Degrees of freedom of its estimate.
    freedom: float


def part(values: Sequence[float]) -> Part | None:
    """What the spread of independent `values` adds to the variance of their mean; None for fewer than two."""
    error = mean_and_error(values)[1]
    return None if error is None else Part(error**2, len(values) - 1)


def _error_and_freedom(parts: Sequence[Part]) -> tuple[float, float]:
    """Standard error, and degrees of freedom of its estimate (Satterthwaite 1946)."""
    total = math.fsum(part.variance for part in parts)
    weight = math.fsum(part.variance**2 / part.freedom for part in parts)
    return math.sqrt(total), total**2 / weight if weight else math.inf


def t_interval(mean: float, parts: Sequence[Part], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean whose variance is the sum of `parts`."""
    from scipy import stats

    error, freedom = _error_and_freedom(parts)
    reach = error * float(stats.t.ppf((1 + level) / 2, freedom))
    return mean - reach, mean + reach


def t_test(difference: float, parts: Sequence[Part]) -> float:
    """Two-sided p of a difference of means whose variance is the sum of `parts`."""
    from scipy import stats

    error, freedom = _error_and_freedom(parts)
    if error == 0:
        return float(difference == 0)
    return float(2 * stats.t.sf(abs(difference) / error, freedom))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p of so uneven a split of wins and losses if both are equally likely, without ties."""
    from scipy import stats

    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def ratio_error(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], resamples: int = 1000, seed: int = 0
) -> float:
    """Bootstrap standard error of 100 x (mean over test sets of our mean score) / (the same of theirs).

    The prompts of each test set are resampled, the same for both models.  Raises ValueError if the two have
    different numbers of prompts.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    sums = np.zeros((2, resamples))
    for a, b in zip(ours, theirs, strict=True):
        # ValueError if they differ in length.
        pairs = np.stack([np.asarray(a, dtype=float), np.asarray(b, dtype=float)])
        rows = generator.integers(pairs.shape[1], size=(resamples, pairs.shape[1]))
        sums += pairs[:, rows].mean(-1)
    return float(np.std(100.0 * sums[0] / sums[1], ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in input order: those at or below a level are jointly significant at it."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
