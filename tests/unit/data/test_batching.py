"""Which rows are computed at once.

Rows of similar lengths, at most so many rows and tokens, and the same company on every rank.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from onpolicy_case import COUNT, OneProcess, Texts, pair, rollouts, settings, task

from minillm.config.launch import Launch
from minillm.data.batching import by_length, least_padding
from minillm.runtime.processes import World
from minillm.training.rollout_losses import micro_batches

LENGTHS = [int(n) for n in np.random.default_rng(3).integers(1, 60, 41)]


@pytest.mark.parametrize(("rows", "tokens"), [(4, 0), (100, 120), (3, 120), (100, 10), (1, 0)])
def test_limits_are_kept_and_no_row_is_lost(rows, tokens):
    batches = by_length(range(len(LENGTHS)), LENGTHS.__getitem__, rows, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(LENGTHS)))
    for batch in batches:
        assert len(batch) <= rows
        assert not tokens or len(batch) == 1 or len(batch) * max(LENGTHS[i] for i in batch) <= tokens
    flat = [LENGTHS[i] for batch in batches for i in batch]
    assert flat == sorted(flat)


def test_batches_are_as_full_as_they_may_be():
    batches = by_length([5, 5, 5, 9, 2], int, 100, 20)
    assert batches == [[2, 5, 5, 5], [9]]
    assert by_length([], int, 4, 0) == []


def cuts(items):
    """All ways to cut a list into consecutive batches."""
    for places in itertools.product((False, True), repeat=len(items) - 1):
        batches = [[items[0]]]
        for item, new in zip(items[1:], places, strict=True):
            batches.append([item]) if new else batches[-1].append(item)
        yield batches


@pytest.mark.parametrize(("rows", "tokens"), [(100, 120), (3, 120), (2, 1000), (100, 10), (100, 1000)])
def test_no_other_cuts_cost_less(rows, tokens):
    """The cheapest of all that keep the limits, by enumeration.

    The cost: positions with padding, and a sixteenth of `tokens` a batch.
    """

    def cost(batches):
        return sum(len(batch) * max(batch) + tokens / 16 for batch in batches)

    def allowed(batch):
        return len(batch) <= rows and (len(batch) == 1 or len(batch) * max(batch) <= tokens)

    lengths = sorted(LENGTHS[:11])
    found = least_padding(lengths[::-1], int, rows, tokens)
    assert [n for batch in found for n in batch] == lengths
    assert all(map(allowed, found))
    assert cost(found) == pytest.approx(
        min(cost(batches) for batches in cuts(lengths) if all(map(allowed, batches)))
    )


def test_without_a_budget_batches_are_full():
    assert (
        least_padding([5, 5, 5, 9, 2], int, 2) == by_length([5, 5, 5, 9, 2], int, 2) == [[2, 5], [5, 5], [9]]
    )
    assert least_padding([], int, 4, 100) == []


@pytest.mark.parametrize(
    "launch", [Launch(micro_batch=3), Launch(micro_batch=99, micro_tokens=60)], ids=("rows", "tokens")
)
def test_every_rank_makes_the_same_passes(launch):
    """As many micro-batches on each, with as many samples and as many texts.

    Under ZeRO-3 a rank with one more would wait for ever.
    """
    chosen = settings("paper", lm_batch=4)
    student, teacher = pair()
    made = rollouts(student, teacher, chosen)

    def parts_of(rank, size):
        engine = OneProcess(student, launch)
        engine.world = dataclasses.replace(World(0, 1, torch.device("cpu")), rank=rank, size=size)
        return micro_batches(engine, task(teacher, chosen), made, list(range(COUNT)))[0]

    whole = sorted(row for part in parts_of(0, 1) for row in part)
    assert [row for row in whole if row[0] == "sample"] == [("sample", i) for i in range(COUNT)]
    assert len([row for row in whole if row[0] == "text"]) == 4 < len(Texts())
    for size in (2, 4):
        ranks = [parts_of(rank, size) for rank in range(size)]
        assert sorted(row for parts in ranks for part in parts for row in part) == whole
        kinds = {tuple(tuple(sorted(kind for kind, _ in part)) for part in parts) for parts in ranks}
        assert len(kinds) == 1, "the same company on every rank"
        assert size == 4 or len(next(iter(kinds))) > 1
