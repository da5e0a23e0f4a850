"""What happens at which optimizer step: learning rate, rows of the batch, dev evaluations."""

from __future__ import annotations

import functools
import math

import numpy as np

from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Training
from minillm.errors import UserError


def learning_rate(settings: Training | OnPolicy, step: int, steps: int) -> float:
    """Rate at step `step` (0-based) of `steps`: linear warm-up, then constant or cosine to `min_lr`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup) / max(1, steps - settings.warmup)
    floor = min(settings.min_lr, settings.lr)
    return floor + (settings.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def batch_of_step(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Rows of an optimizer step's global batch: each epoch is a permutation drawn from (seed, epoch).

    The last partial batch of an epoch is dropped.
    """
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    return permutation(count, seed, epoch)[place * batch : (place + 1) * batch].tolist()


# Two: a step takes its rows from one order and its plain text from another.
@functools.lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Order of `count` rows in one epoch, (count,), kept: 10 million chunks take a second to permute."""
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
    order.setflags(write=False)
    # Half the memory: 40 MB for 10 million.
    return order.astype(np.int32) if count < 2**31 else order


def count_steps(count: int, settings: Training) -> int:
    """Optimizer steps of a run over `count` examples; UserError if they do not fill one batch."""
    if count < settings.batch:
        raise UserError(
            f"batch: {settings.batch} rows a batch, but there are only {count} training rows; lower it"
        )
    return max(1, round(settings.epochs * (count // settings.batch)))


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Steps after which the dev set is evaluated: evenly spaced, always including the last."""
    return {max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)}


def share(batch: int, processes: int) -> int:
    """Rows per process; UserError if the processes do not divide the global batch."""
    if batch % processes:
        raise UserError(
            f"batch: a global batch of {batch} rows cannot be split evenly over {processes} processes; "
            "change one of them"
        )
    return batch // processes
