"""Trackers show metrics.jsonl and nothing else, also after a training was killed and resumed."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from minillm.config.launch import Launch
from minillm.errors import UserError
from minillm.readers import read_object
from minillm.runtime.metrics_log import MetricsLog, training_of
from minillm.runtime.processes import World

WEIGHTS = "small/kd/big/seed10"


@dataclass
class Running:
    """As much of an Engine as the log asks for; `logged` is what a checkpoint says of the log's length."""

    folder: Path
    out: Path | None
    launch: Launch
    step: int = 0
    logged: int = 0
    steps: int = 9
    world: World = World(0, 1, torch.device("cpu"))

    def elapsed(self):
        return 1.5

    def say(self, text):
        pass


def needs(package):
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")


def killed_and_resumed(run: Path, tracker: str) -> list[tuple[int, float]]:
    """Steps 1 to 4, of which a checkpoint knows 1 and 2, then 3 and 4 with other numbers; the log's lines."""
    folder = run / "checkpoints/kd-abc"
    folder.mkdir(parents=True)
    launch = Launch(tracker=(tracker,))
    engine = Running(folder, run / "models" / WEIGHTS, launch)
    first = MetricsLog(engine, "kd")
    for engine.step in (1, 2, 3, 4):
        first.write({"loss": float(engine.step), "dev_loss": float("nan")})
        if engine.step == 2:
            known = (folder / "metrics.jsonl").stat().st_size
    first.close()
    engine = Running(folder, engine.out, launch, step=2, logged=known)
    second = MetricsLog(engine, "kd")
    for engine.step in (3, 4):
        second.write({"loss": engine.step + 0.5})
    second.close()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5)]
    return losses


def wandb_history(data: bytes) -> list[tuple[int, float]]:
    """(step, loss) of each history record: a file below 32 KiB is a head and whole records.

    A record is a checksum, its length, the kind 1 and a protocol buffer.
    """
    from wandb.proto import wandb_internal_pb2

    data, history = data[7:], []
    while data:
        length, kind = struct.unpack("<HB", data[4:7])
        assert kind == 1
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[7 : 7 + length])
        data = data[7 + length :]
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            history.append((json.loads(items["_step"]), json.loads(items["loss"])))
    return history


@needs("tensorboard")
def test_tensorboard_has_the_lines_of_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = killed_and_resumed(tmp_path / "demo", "tensorboard")
    events = EventAccumulator(str(tmp_path / "demo/trackers/tensorboard" / WEIGHTS))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "seconds"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == losses


@needs("trackio")
def test_trackio_has_the_lines_of_the_log(tmp_path, monkeypatch):
    """Read from its database; trackio keeps the folder that it was first imported with."""
    import trackio.utils

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio")
    losses = killed_and_resumed(tmp_path / "demo", "trackio")
    runs = list(trackio.Api().runs("demo"))
    assert [run.name for run in runs] == [WEIGHTS] and runs[0].config["_Group"] == "small/kd/big"
    with sqlite3.connect(tmp_path / "trackio/demo.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(text)["loss"]) for step, text in rows] == losses


@needs("wandb")
def test_wandb_has_the_lines_of_the_log_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    losses = killed_and_resumed(tmp_path / "demo", "wandb")
    (folder,) = (tmp_path / "demo/trackers/wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    # Another process writes it, and is not waited for.
    end = time.monotonic() + 30
    while (history := wandb_history(file.read_bytes())) != losses and time.monotonic() < end:
        time.sleep(0.5)
    assert history == losses


def test_a_package_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    engine = Running(tmp_path, tmp_path / "out", Launch(tracker=("trackio",)))
    with pytest.raises(UserError, match="^launch.tracker: cannot import trackio .*`pip install trackio`"):
        MetricsLog(engine, "kd")


def test_no_tracker_is_imported_without_being_asked_for(tmp_path, monkeypatch):
    for name in ("trackio", "wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    MetricsLog(Running(tmp_path, None, Launch()), "kd").write({"loss": 1.0})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["metrics.jsonl", "training.json"]


def test_a_training_is_named_by_the_place_of_its_model(tmp_path):
    folder = tmp_path / "demo/checkpoints/kd-abc"
    folder.mkdir(parents=True)
    training = training_of(Running(folder, Path("results/demo/models", WEIGHTS), Launch()), "kd")
    assert (training.run, training.weights, training.group) == ("demo", WEIGHTS, "small/kd/big")
    assert training.folder == tmp_path / "demo/trackers"
    # By hand, in a folder of one's own; and without a place.
    assert training_of(Running(folder, Path("mine"), Launch()), "kd").weights == "mine"
    assert training_of(Running(folder, None, Launch()), "kd").weights == "kd-abc"
    MetricsLog(Running(folder, Path("results/demo/models", WEIGHTS), Launch()), "kd")
    said = read_object(folder / "training.json", {"weights": str, "stage": str, "steps": int}, "", "")
    assert (said["weights"], said["stage"], said["steps"]) == (WEIGHTS, "kd", 9)
