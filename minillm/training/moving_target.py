"""TAID's schedule: how far the target has moved from the student to the teacher (arXiv 2501.16937)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from minillm.config.objective_parts import Taid


@dataclass
class MovingTarget:
    """t, the last step's loss and the momentum of its relative change; part of every checkpoint.

    The same on every rank, since each is told the loss of the whole mini-batch.
    """

    settings: Taid
    t: float
    loss: float | None = None
    momentum: float = 0.0

    @classmethod
    def of(cls, settings: Taid | None, saved: dict[str, Any] | None) -> MovingTarget | None:
        """As it starts, or as `saved`; None without settings."""
        if settings is None:
            return None
        return cls(settings, **saved) if saved else cls(settings, settings.start)

    def saved(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return {"t": self.t, "loss": self.loss, "momentum": self.momentum}

    def move(self, loss: float, progress: float) -> None:
        """After a step: `loss` is its mini-batch's, `progress` the share of all steps made before it.

        m <- momentum m + (1 - momentum) (last loss - loss) / last loss; t <- t + step sigmoid(m) (1 - t), at
        least the line from start to end, at most end (Section 3.2).  The first loss only sets the scale; one
        that is not finite changes nothing.
        """
        s = self.settings
        line = s.start + (s.end - s.start) * progress
        if not s.adaptive:
            self.t = line
        elif math.isfinite(loss):
            if self.loss is not None:
                change = (self.loss - loss) / (self.loss + 1e-15)
                self.momentum = s.momentum * self.momentum + (1 - s.momentum) * change
                step = s.step / (1 + math.exp(-self.momentum)) * (1 - self.t)
                self.t = min(s.end, max(line, self.t + step))
            self.loss = loss
