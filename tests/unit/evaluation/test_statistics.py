"""Means, standard errors and components by hand; what the bootstrap promises, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm.evaluation.statistics import (
    Components,
    Part,
    bootstrap_mean,
    components,
    holm,
    mean_and_error,
    paired_bootstrap,
    part,
    pooled,
    ratio_error,
    t_interval,
    t_test,
)


def test_mean_and_error_by_hand() -> None:
    # deviations -2, 0, 2: variance 8 / 2 = 4, standard error sqrt(4 / 3)
    assert mean_and_error([1, 3, 5]) == (3.0, pytest.approx(math.sqrt(4 / 3)))
    assert mean_and_error([2.5]) == (2.5, None)
    assert mean_and_error([2.0, 2.0]) == (2.0, 0.0)
    with pytest.raises(ValueError, match="no value"):
        mean_and_error([])


def test_one_training_seed_ranges_over_sampling_seeds() -> None:
    assert pooled({10: {10: 1.0, 20: 3.0, 30: 5.0}}) == (
        3.0,
        pytest.approx(math.sqrt(4 / 3)),
        "3 sampling seeds, 1 training seed",
    )


def test_several_training_seeds_range_over_their_means() -> None:
    # means 2 and 6: standard error sqrt(8) / sqrt(2) = 2; the spread within a training seed does not enter
    mean, error, over = pooled({1: {10: 0.0, 20: 4.0}, 2: {10: 6.0, 20: 6.0}})
    assert (mean, over) == (4.0, "2 training seeds, 2 sampling seeds each")
    assert error == pytest.approx(2.0)


def test_one_of_each_has_no_error() -> None:
    assert pooled({10: {10: 7.0}}) == (7.0, None, "1 sampling seed, 1 training seed")


def test_unequal_counts_are_told() -> None:
    assert pooled({1: {10: 1.0}, 2: {10: 1.0, 20: 3.0}})[2] == "2 training seeds, 1 to 2 sampling seeds each"


def test_nothing_to_pool() -> None:
    cases: list[dict[int, dict[int, float]]] = [{}, {1: {}}]
    for empty in cases:
        with pytest.raises(ValueError, match="no value"):
            pooled(empty)


def test_components_by_hand() -> None:
    # within: (0.5 + 0.5) / 2 = 0.5; means 1.5 and 5.5, MSB = 2 * 4 + 2 * 4 = 16 over 1;
    # between: (16 - 0.5) / 2
    found = components({1: {10: 1.0, 20: 2.0}, 2: {10: 5.0, 20: 6.0}})
    assert (found.within, found.between) == (pytest.approx(0.5), pytest.approx(7.75))
    alike = components({1: {10: 0.0, 20: 4.0}, 2: {10: 4.0, 20: 0.0}})
    assert alike.between == 0.0 and alike.within == pytest.approx(8.0)  # the estimate would be -4


def test_components_that_the_data_cannot_tell() -> None:
    assert components({}) == components({1: {10: 1.0}, 2: {10: 2.0}}) == Components(None, None)
    assert components({1: {10: 1.0, 20: 3.0}}) == Components(None, pytest.approx(2.0))


def test_components_of_many_draws() -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(20, 2.0, size=400)
    draws = {i: {j: float(c + rng.normal(0, 0.5)) for j in range(2 + i % 4)} for i, c in enumerate(centres)}
    found = components(draws)
    assert found.between == pytest.approx(4.0, rel=0.15) and found.within == pytest.approx(0.25, rel=0.15)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    inside = 0
    for i in range(1200):
        low, high = bootstrap_mean(rng.gamma(4.0, 5.0, size=80), str(i), resamples=250) or (0.0, 0.0)
        inside += low <= 20.0 <= high
    assert 0.93 < inside / 1200 < 0.97


def test_paired_bootstrap() -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(20, 8, size=200)  # what makes a prompt easy or hard is the same for both
    first, second = hard + rng.normal(1.0, 1, size=200), hard + rng.normal(0, 1, size=200)
    found = paired_bootstrap(first, second, "a")
    assert found == paired_bootstrap(first, second, "a")
    assert found.low < found.difference < found.high and found.low > 0 and found.p < 0.001
    back = paired_bootstrap(second, first, "a")
    assert back.difference == -found.difference and back.p == found.p
    assert paired_bootstrap(hard, hard, "a").p == 1.0
    with pytest.raises(ValueError, match="the same prompts"):
        paired_bootstrap([1.0, 2.0], [1.0], "a")


def test_p_of_no_difference_is_evenly_spread() -> None:
    rng = np.random.default_rng(8)
    p = [paired_bootstrap(*rng.normal(size=(2, 40)), str(i), resamples=200).p for i in range(300)]
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.1


def test_students_t_by_hand() -> None:
    own = part([1.0, 2.0, 3.0])  # s^2 / n = 1 / 3, two degrees of freedom, of which t is 4.303
    assert own == Part(pytest.approx(1 / 3), 2) and part([1.0]) is None
    assert t_interval(2.0, [own]) == (
        pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3),
        pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3),
    )
    both = [
        Part(1.0, 2),
        Part(1.0, 2),
    ]  # variance 2, Satterthwaite's degrees of freedom 2^2 / (1/2 + 1/2) = 4, of which t is 2.776
    assert t_interval(0.0, both)[1] == pytest.approx(2.776 * 2**0.5, abs=1e-3)
    assert t_test(2.776 * 2**0.5, both) == pytest.approx(0.05, abs=1e-4)
    assert t_test(0.0, [Part(0.0, 1)]) == 1 and t_test(0.1, [Part(0.0, 1)]) == 0


def test_the_interval_covers_what_another_training_would_give() -> None:
    """Three trainings on the same 60 prompts: with both variances 95% of the intervals hold the mean."""
    rng = np.random.default_rng(3)
    both = prompts_alone = 0
    for _ in range(1000):
        scores = 20 + rng.normal(0, 1, (3, 1)) + rng.normal(0, 3, (1, 60)) + rng.normal(0, 2, (3, 60))
        prompts, trainings = part(list(scores.mean(0))), part(list(scores.mean(1)))
        assert prompts and trainings
        for parts in ([prompts, trainings], [prompts]):
            low, high = t_interval(float(scores.mean()), parts)
            both += len(parts) == 2 and low <= 20 <= high
            prompts_alone += len(parts) == 1 and low <= 20 <= high
    assert 0.94 < both / 1000 < 0.99 and prompts_alone / 1000 < 0.85


def test_error_of_a_ratio() -> None:
    """Of one set by the delta method.

    The deviation of (ours - ratio * theirs) over the mean of theirs and the root of n.
    """
    rng = np.random.default_rng(9)
    theirs = rng.normal(30, 6, 400)
    ours = 0.5 * theirs + rng.normal(0, 1, 400)
    expected = 100 * np.std(ours - ours.mean() / theirs.mean() * theirs) / theirs.mean() / 20
    assert ratio_error([list(ours)], [list(theirs)]) == pytest.approx(expected, rel=0.1)
    assert ratio_error([list(0.5 * theirs)] * 2, [list(theirs)] * 2) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError):
        ratio_error([[1.0, 2.0]], [[1.0]])


def test_holm_by_hand() -> None:
    # sorted 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.5 * 1
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
