"""metrics.jsonl: one object per logged step, and training.json, which says of which training it is."""

from __future__ import annotations

import json
import math
from typing import Any

from minillm.config import layout
from minillm.files import write_json
from minillm.runtime.engine import METRICS, Engine
from minillm.runtime.trackers import Training, log_line, open_trackers

# Next to the log while a stage trains, so that curves of what runs have a name and an end.
TRAINING = "training.json"


class MetricsLog:
    """metrics.jsonl: one object per logged step, written by rank 0; NaN and infinity, no JSON, become null.

    Resuming cuts it to what it held when the checkpoint was saved.  Step numbers do not tell which lines
    these are, since what a step begins with is logged after the checkpoint of the same number.  Trackers are
    given the same lines.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.path, self.engine, self.name = engine.folder / METRICS, engine, name
        if engine.world.rank != 0:
            return
        kept = b""
        if self.path.exists():
            kept = self.path.read_bytes()[: engine.logged]
            # Whole lines only, in case the disk lost part of the file.
            kept = kept[: kept.rfind(b"\n") + 1]
            self.path.write_bytes(kept)
        training = training_of(engine, name)
        write_json(
            engine.folder / TRAINING, {"weights": training.weights, "stage": name, "steps": engine.steps}
        )
        self.trackers = open_trackers(engine.launch.tracker, training, map(json.loads, kept.splitlines()))

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
        log_line(self.trackers, plain)

    def close(self) -> None:
        """Let trackers write what they hold back; after a kill the next start gives it to them again."""
        for tracker in self.trackers if self.engine.world.rank == 0 else ():
            tracker.close()


def training_of(engine: Engine, name: str) -> Training:
    """Which training an engine runs: by the place of its model, or by that of its checkpoints without one."""
    run = engine.folder.absolute().parents[1]
    place = layout.place_of_model(str(engine.out)) if engine.out else None
    weights = place[1] if place else engine.out.name if engine.out else engine.folder.name
    return Training(run.name, weights, name, engine.folder.name, run / layout.trackers())
