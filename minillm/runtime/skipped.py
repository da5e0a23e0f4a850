"""Optimizer steps that are left out because a gradient is NaN or infinite: counted, and ended if they go on.

DeepSpeed 0.19.8 leaves such a step out without a word, in every precision and under every ZeRO stage but one:
under ZeRO 0 in fp32 torch's optimizer takes it, and every weight is NaN from then on.  Here that step is left
out too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from minillm.errors import Diverged

# In a row.  The rows of a batch change from step to step: that many at once are not one bad row.
LIMIT = 5
# Rows that a message names.
NAMED = 20


class SkippedSteps:
    """Counts the steps that a DeepSpeed engine leaves out; all ranks count the same."""

    def __init__(self, engine: Any, steps: int) -> None:
        """For a run of `steps` steps: a shorter one than LIMIT may not leave out all of them."""
        self.engine, self.limit = engine, min(LIMIT, steps)
        self.in_a_row = 0
        self._before = int(engine.skipped_steps)
        # ZeRO 0 in fp32: one number a step, on the device until somebody looks.
        self._unread: list[torch.Tensor] = []
        self._plain = not hasattr(engine.optimizer, "overflow")
        if self._plain:
            engine.clip_fp32_gradients = self._clip

    def _clip(self) -> None:
        """DeepSpeed's clipping, whose norm tells torch's optimizer whether to take the step."""
        from deepspeed.runtime.utils import clip_grad_norm_

        engine = self.engine
        norm = clip_grad_norm_(
            engine.module.parameters(), max_norm=engine.gradient_clipping(), mpu=engine.mpu
        )
        # A fused optimizer reads it on the device.
        engine.optimizer.found_inf = (~torch.isfinite(norm)).to(torch.float32).reshape(())
        engine._global_grad_norm = norm
        self._unread.append(engine.optimizer.found_inf)

    def resumed(self, in_a_row: int) -> None:
        """Go on from a checkpoint that DeepSpeed has loaded, whose last `in_a_row` steps were left out."""
        self._before, self.in_a_row = int(self.engine.skipped_steps), in_a_row

    def total(self) -> int:
        """Steps left out since the run began; waits for the device under ZeRO 0 in fp32."""
        if self._unread:
            flags = torch.stack(self._unread).tolist()
            self._unread.clear()
            self.engine.skipped_steps += int(sum(flags))
            for flag in flags:
                self.in_a_row = self.in_a_row + 1 if flag else 0
        return int(self.engine.skipped_steps)

    def check(self, step: int, rows: Sequence[object], look: bool) -> None:
        """After each step: Diverged on every rank if too many in a row were left out; names step and rows.

        `look`: whether waiting for the device is allowed.  In fp16 the search for a loss scale leaves out
        steps as a rule: only those count that are left out although the scale is down to 1.
        """
        if not self._plain:
            self.in_a_row = self.in_a_row + 1 if self.total() > self._before else 0
            self._before = self.total()
        elif look:
            self._before = self.total()
        searching = self.engine.fp16_enabled() and self.engine.optimizer.loss_scale > 1
        if self.in_a_row >= self.limit and not searching:
            raise self.error(step, rows)

    def error(self, step: int, rows: Sequence[object]) -> Diverged:
        """What is said when the run ends for it."""
        named = ", ".join(map(str, rows[:NAMED])) + (f" and {len(rows) - NAMED} more" * (len(rows) > NAMED))
        return Diverged(
            f"step {step}: NaN or infinite gradients, {max(1, self.in_a_row)} steps in a row, "
            f"which changed no weight; the batch was rows {named or 'unknown'}: look at them and at the "
            "models' weights, or lower lr; the same command resumes from the last checkpoint"
        )
