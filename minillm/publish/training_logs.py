"""What every training of a run has logged so far: those that are finished, and those that are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.errors import UserError
from minillm.readers import checked, is_a, parse_json, read_object, read_text

METRICS = "metrics.jsonl"
AGAIN = "remove the line"


@dataclass(frozen=True)
class Log:
    """One training.

    weights: the path of its model below models/; of one that is not finished and says no more, the name of
    its checkpoints.  also: other models of the same training.  steps: how many it will make; 0 if not known.
    running: whether it has not finished.  changed: when it logged last, in seconds since 1970.
    """

    weights: str
    lines: list[dict[str, Any]]
    steps: int = 0
    running: bool = False
    changed: float = 0.0
    also: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The model that is trained."""
        return self.weights.split("/")[0]

    @property
    def step(self) -> int:
        """The last step that it logged."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    def series(self, key: str) -> list[tuple[float, float | None]]:
        """(step, value) of the lines that have the key; None for a value that was not finite."""
        return [(line["step"], line[key]) for line in self.lines if key in line]


def read_logs(run: Path) -> list[Log]:
    """The logs of all trainings below results/<run>, by name, those that have not finished last.

    Raises UserError, naming file and line, if one is damaged.
    """
    by_text: dict[str, list[str]] = {}
    models = run / layout.model("")
    for path in sorted(models.rglob(METRICS)):
        weights = path.parent.relative_to(models).as_posix()
        # Folders that are being written, or left by a kill.
        if not any(part.startswith(".") for part in weights.split("/")):
            by_text.setdefault(read_text(path), []).append(weights)
    finished = []
    for text, weights_of in by_text.items():
        # SFT leaves two models of one training, of which "init" is the less known.
        first, *also = sorted(weights_of, key=lambda w: "/init/" in w)
        lines = list(_lines(text, models / first / METRICS))
        finished.append(Log(first, lines, also=tuple(also)))
    running = [_running(path) for path in sorted((run / layout.checkpoints()).glob(f"*/{METRICS}"))]
    return [*sorted(finished, key=lambda log: log.weights), *sorted(running, key=lambda log: log.weights)]


def _running(path: Path) -> Log:
    folder = path.parent
    try:
        kinds = {"weights": str, "steps": int}
        said = read_object(folder / "training.json", kinds, "no such file", "")
    except UserError:
        # Of a version before, or not written yet.
        said = {"weights": folder.name, "steps": 0}
    # A line that is being written has no end yet.
    text = read_text(path).rpartition("\n")[0]
    lines = list(_lines(text, path))
    return Log(said["weights"], lines, said["steps"], running=True, changed=path.stat().st_mtime)


def _lines(text: str, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        where = f"{path}:{number}"
        values = checked(parse_json(line, where, AGAIN), {"step": int}, where, AGAIN)
        yield {key: value for key, value in values.items() if value is None or is_a(value, (int, float))}
