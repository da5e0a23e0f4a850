"""Experiment trackers on request (launch value `tracker`): TensorBoard, trackio, Weights & Biases.

A tracker shows metrics.jsonl and nothing else.  When a training starts or resumes, what the tracker has of it
is replaced by the lines of that file, so that a curve continues and has no step twice.  All files go to
results/<run>/trackers; nothing is sent anywhere unless the user's environment says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from minillm.errors import UserError
from minillm.files import hash_of
from minillm.models.checks import in_one_line


@dataclass(frozen=True)
class Training:
    """Which training a curve is of.

    run: name of the run.  weights: path of its model below models/, as in layout.py.  stage: its stage or
    method.  key: name of its checkpoints, which holds a hash of settings and inputs.  folder: where trackers
    put their files.
    """

    run: str
    weights: str
    stage: str
    key: str
    folder: Path

    @property
    def group(self) -> str:
        """What its training seeds share: model, method and teacher."""
        place, _, last = self.weights.rpartition("/")
        return place if last.startswith("seed") else self.weights


class Tracker(Protocol):
    """Where the numbers of logged steps go as well."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The numbers of one logged step, by name."""

    def close(self) -> None:
        """Write what is still held back."""


class _TensorBoard:
    def __init__(self, training: Training) -> None:
        writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        folder = training.folder / "tensorboard" / training.weights
        for path in folder.glob("events.*"):
            path.unlink()
        self._writer = writer(str(folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, training: Training) -> None:
        # Read on import.
        os.environ.setdefault("TRACKIO_DIR", str((training.folder / "trackio").absolute()))
        trackio = _package("trackio")
        # Raised for a project that is new.
        with suppress(ValueError):
            for run in trackio.Api().runs(training.run):
                if run.name == training.weights:
                    run.delete()
        self._run = trackio.init(
            training.run,
            name=training.weights,
            group=training.group,
            config={"stage": training.stage, "checkpoints": training.key},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Wandb:
    def __init__(self, training: Training) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb = _package("wandb")
        training.folder.mkdir(parents=True, exist_ok=True)
        # With one id all starts of a training are one curve at the server, which ignores steps it has.
        name = hash_of(training.run, training.weights, training.key)[:16]
        for earlier in (training.folder / "wandb").glob(f"offline-run-*-{name}"):
            shutil.rmtree(earlier)
        self._run = wandb.init(
            project=training.run,
            name=training.weights,
            group=training.group,
            job_type=training.stage,
            id=name,
            resume="allow",
            dir=str(training.folder),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[[Training], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}


def open_trackers(
    names: Iterable[str], training: Training, lines: Iterable[Mapping[str, Any]]
) -> list[Tracker]:
    """The trackers `names` of a training, filled with what it logged so far (`lines` of metrics.jsonl).

    Raises UserError, one line, if a package is not installed.
    """
    trackers = [_KINDS[name](training) for name in dict.fromkeys(names)]
    for line in lines if trackers else ():
        log_line(trackers, line)
    return trackers


def log_line(trackers: Iterable[Tracker], line: Mapping[str, Any]) -> None:
    """Give the numbers of one line of metrics.jsonl to each of the trackers."""
    values = {
        name: value for name, value in line.items() if isinstance(value, float | int) and name != "step"
    }
    for tracker in trackers:
        tracker.log(values, line["step"])


def _package(module: str, package: str = "") -> Any:
    package = package or module
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"launch.tracker: cannot import {package} ({in_one_line(error)}); `pip install {package}`, or "
            "leave it out of `tracker`"
        ) from None
