"""Batches, learning rates, the order of rows, the log: what a run depends on, without a model."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from minillm.config.launch import Launch
from minillm.config.sections import Training
from minillm.errors import UserError
from minillm.runtime import schedule
from minillm.runtime.metrics_log import MetricsLog
from minillm.runtime.processes import World
from minillm.runtime.schedule import batch_of_step, count_steps, evaluation_steps, learning_rate, share


def test_global_batch_is_kept_whatever_the_processes():
    assert [share(64, processes) for processes in (1, 2, 4)] == [64, 32, 16]
    with pytest.raises(UserError, match="global batch of 10 rows .* 4 processes"):
        share(10, 4)


def test_learning_rate_of_warm_up_and_cosine():
    settings = Training(lr=1.0, epochs=1, schedule="cosine", min_lr=0.1, warmup=4)
    rates = [learning_rate(settings, step, 12) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[8] == pytest.approx(0.55) and rates[12] == pytest.approx(0.1)
    constant = Training(lr=1.0, epochs=1, schedule="constant")
    assert {learning_rate(constant, step, 12) for step in range(13)} == {1.0}


def test_each_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    epochs = [
        [row for step in range(4 * e, 4 * e + 4) for row in batch_of_step(13, 3, step, seed=5)]
        for e in range(3)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 12 and set(epoch) < set(range(13)), (
            "12 of 13 rows: a last partial batch is left out"
        )
    assert epochs[0] != epochs[1]
    assert batch_of_step(13, 3, 6, seed=5) == epochs[1][6:9]
    assert batch_of_step(13, 3, 0, seed=6) != batch_of_step(13, 3, 0, seed=5)


def test_an_epoch_is_permuted_once(monkeypatch):
    """Rows and plain text in turn, as steps take them: each order is drawn once, not at every step."""
    made, philox = [], np.random.Philox

    def counted(key):
        made.append(key)
        return philox(key=key)

    monkeypatch.setattr(np.random, "Philox", counted)
    schedule.permutation.cache_clear()
    found = [(batch_of_step(10, 2, step, seed=1), batch_of_step(200, 2, step, seed=2)) for step in range(20)]
    assert sorted(made) == [[1, 0], [1, 1], [1, 2], [1, 3], [2, 0]]
    for step, (rows, texts) in enumerate(found):
        orders = [
            np.random.Generator(philox(key=[seed, epoch])).permutation(count)
            for count, seed, epoch in ((10, 1, step // 5), (200, 2, 0))
        ]
        place = step % 5
        assert rows == orders[0][2 * place : 2 * place + 2].tolist()
        assert texts == orders[1][2 * step : 2 * step + 2].tolist()
        assert all(type(row) is int for row in rows)


def test_steps_and_evaluations():
    assert count_steps(100, Training(lr=1.0, epochs=2.5, batch=32)) == 8
    assert evaluation_steps(10, 3) == {3, 7, 10}
    assert evaluation_steps(1, 5) == {1}
    with pytest.raises(UserError, match="32 rows a batch, but there are only 20"):
        count_steps(20, Training(lr=1.0, epochs=1, batch=32))


@dataclass
class Running:
    """As much of an Engine as the log asks for; `logged` is what a checkpoint says of the log's length."""

    folder: Path
    step: int = 0
    logged: int = 0
    steps: int = 9
    launch: Launch = Launch()
    out: Path | None = None
    world: World = World(0, 1, torch.device("cpu"))

    def elapsed(self):
        return 0.0

    def say(self, text):
        pass


def test_the_log_is_cut_to_what_the_checkpoint_knows_of(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def steps():
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    run = Running(tmp_path)
    log = MetricsLog(run, "test")
    for run.step in (0, 4):
        log.write({"loss": 1.0})
    saved = path.stat().st_size
    log.write({"reward": 1.0})  # step 4 again: logged after its checkpoint
    run.step = 5
    log.write({"loss": 1.0})
    with open(path, "a") as file:
        file.write('{"step": 6, "lo')
    MetricsLog(Running(tmp_path, step=4, logged=saved), "test")
    assert steps() == [0, 4] and path.stat().st_size == saved
    path.write_bytes(path.read_bytes()[:-3])  # the disk has lost the end
    MetricsLog(Running(tmp_path, step=4, logged=saved), "test")
    assert steps() == [0]
    MetricsLog(Running(tmp_path), "test")  # killed before the first checkpoint
    assert path.read_bytes() == b""


def test_the_log_holds_json_only(tmp_path):
    MetricsLog(Running(tmp_path), "test").write({"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 0, "seconds": 0.0, "loss": null, "grad_norm": null, "lr": 0.1}\n'
