"""Means and standard errors by hand."""

from __future__ import annotations

import math

import pytest

from minillm.evaluation.statistics import mean_and_error, pooled


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
