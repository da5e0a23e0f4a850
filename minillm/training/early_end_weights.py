"""Weights of tokens by how often student and teacher have disagreed: `sampler.early_end`, Prune-OPD."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.config.onpolicy import OnPolicy
from minillm.training.rollouts import Rollouts


def with_early_end(rollouts: Rollouts, settings: OnPolicy, weights: Tensor | None) -> Tensor | None:
    """The weights of a collection's tokens, (rows, time), times base + max(0, 1 - n / events).

    n is how often the models have disagreed up to and including the token (arXiv 2605.07804), 0 in responses
    that the student has not drawn.  As they are if the settings do not ask for it; `weights` None is 1
    everywhere.
    """
    early_end = settings.sampler.early_end if settings.sampler is not None else None
    if early_end is None or early_end.base is None:
        return weights
    drifted = torch.zeros_like(rollouts.mask) if rollouts.drifted is None else rollouts.drifted
    left = (1 - (drifted * rollouts.mask).cumsum(1) / early_end.events).clamp(min=0)
    factor = (early_end.base + left) * rollouts.mask
    return factor if weights is None else torch.mul(weights, factor)
