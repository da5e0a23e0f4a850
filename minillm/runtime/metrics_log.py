"""metrics.jsonl: one object per logged step."""

from __future__ import annotations

import json
import math
from typing import Any

from minillm.runtime.engine import METRICS, Engine


class MetricsLog:
    """metrics.jsonl: one object per logged step, written by rank 0; NaN and infinity, no JSON, become null.

    Resuming cuts it to what it held when the checkpoint was saved.  Step numbers do not tell which lines
    these are, since what a step begins with is logged after the checkpoint of the same number.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.path, self.engine, self.name = engine.folder / METRICS, engine, name
        self.writer = None
        if engine.world.rank != 0:
            return
        if self.path.exists():
            kept = self.path.read_bytes()[: engine.logged]
            # Whole lines only, in case the disk lost part of the file.
            self.path.write_bytes(kept[: kept.rfind(b"\n") + 1])
        if engine.launch.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(engine.folder / "tensorboard"), purge_step=engine.step + 1)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line, and print one for readers of the log."""
        if self.engine.world.rank != 0:
            return
        entry = {"step": self.engine.step, "seconds": round(self.engine.elapsed(), 1), **values}
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in entry.items()
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain, allow_nan=False) + "\n")
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if isinstance(v, float | int))
        self.engine.say(f"{self.name}  step {self.engine.step}/{self.engine.steps}  {shown}")
        if self.writer is not None:
            for key, value in values.items():
                if isinstance(value, float | int):
                    self.writer.add_scalar(key, value, self.engine.step)
