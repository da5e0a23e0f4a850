"""How a checkpoint is written: when, how fast, hashed on the way, without what follows from other files."""

import errno
import hashlib
import time
import types

import pytest
import torch
from onpolicy_case import COUNT, WHOLE, pair, rollouts, settings, task
from ranks import ranks

from minillm.config.launch import KILLED_AFTER, Launch
from minillm.errors import UserError
from minillm.runtime import checkpoints, saving
from minillm.runtime.engine import Engine
from minillm.runtime.processes import World, start
from minillm.training.rollout_losses import micro_batches

WORLD = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("large", [2**40, 1000, 1])
def test_a_file_is_hashed_while_it_is_written(tmp_path, monkeypatch, large):
    """By this thread and by another."""
    monkeypatch.setattr(saving, "LARGE", large)
    value = {"weights": torch.randn(300, 70), "step": 3}
    with saving.Hashed(tmp_path / "file") as file:
        torch.save(value, file)
    assert file.hexdigest() == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert torch.equal(torch.load(tmp_path / "file")["weights"], value["weights"])


def test_a_full_disk_is_an_error_of_the_writer(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, saving.Hashed(tmp_path / "file") as file:

        def full(data):
            raise OSError(errno.ENOSPC, "No space left on device")

        file._file.close()
        file._file = types.SimpleNamespace(write=full, close=lambda: None)
        file.write(bytes(2 * saving.LARGE))
    assert caught.value.errno == errno.ENOSPC


def engine_at(folder, precision, zero):
    """(engine, its next loss and weights: two steps when called)"""
    student, teacher = (model.float() for model in pair())
    chosen = settings("released", warmup=0, lr=1e-2)
    made = rollouts(student, teacher, chosen)
    engine = Engine(
        student, chosen, Launch(micro_batch=WHOLE.micro_batch, zero=zero), start(0), precision, folder, 4
    )
    teacher = engine.frozen(teacher.to(next(engine.model.parameters()).dtype))

    def steps():
        losses = []
        for _ in range(2):
            sums = engine.update(*micro_batches(engine, task(teacher, chosen), made, list(range(COUNT))))
            losses.append(sums["loss"].item())
        return losses, torch.cat([p.detach().flatten() for p in engine.model.parameters()])

    return engine, steps


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_is_read_only_when_a_run_resumes(tmp_path, monkeypatch, precision, zero):
    """None of DeepSpeed's tensors is read again to be hashed, and the run goes on bit for bit."""
    engine, steps = engine_at(tmp_path / "run", precision, zero)
    steps()
    read, sha256 = [], checkpoints.sha256
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "sha256", lambda path: read.append(path.name) or sha256(path))
        engine.save({"anything": 1})
    # Scripts that DeepSpeed copies.
    assert all(name.endswith(".py") for name in read)
    losses, weights = steps()
    saved = checkpoints.newest(tmp_path / "run", WORLD, print)
    assert saved.step == 2
    again, more = engine_at(tmp_path / "run", precision, zero)
    assert again.resume() == {"anything": 1}
    found, others = more()
    assert found == losses and torch.equal(others, weights)


def test_what_deepspeed_does_itself_is_back_afterwards(tmp_path):
    engine = types.SimpleNamespace(
        checkpoint_engine=types.SimpleNamespace(zipfile_serialization=True), module=torch.nn.Linear(2, 2)
    )
    with saving.hashing(engine, tmp_path) as hashes, saving.without_weights(engine, 1):
        assert engine.module_state_dict(exclude_frozen_parameters=False) == {}
        engine.checkpoint_engine.save({"a": 1}, str(tmp_path / "deepspeed.pt"))
    assert hashes == {"deepspeed.pt": hashlib.sha256((tmp_path / "deepspeed.pt").read_bytes()).hexdigest()}
    assert not hasattr(engine, "module_state_dict") and not hasattr(engine.checkpoint_engine, "save")


def test_what_is_not_trained_and_buffers_are_saved():
    module = torch.nn.BatchNorm1d(3)
    module.bias.requires_grad_(False)
    engine = types.SimpleNamespace(module=module)
    with saving.without_weights(engine, 2):
        assert set(engine.module_state_dict()) == {
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        }


# --- when
def test_steps_or_minutes():
    def due(step, seconds, world=WORLD, **launch):
        engine = types.SimpleNamespace(
            step=step, launch=Launch(**launch), world=world, _saved=time.monotonic() - seconds
        )
        return Engine.save_due(engine)

    assert [due(step, 1e6, save_every=3) for step in (2, 3, 4, 6)] == [False, True, False, True]
    assert [due(3, seconds, save_every=3, save_minutes=0.5) for seconds in (29, 31)] == [False, True]
    # Of two ranks only the first one's clock counts: otherwise one would wait for the other.
    late = ranks(2, lambda world: due(3, 1e6 if world.rank else 0, world, save_minutes=0.5))
    assert late == [False, False]
    assert ranks(2, lambda world: due(3, 0 if world.rank else 1e6, world, save_minutes=0.5)) == [True, True]


# --- whether it fits
def test_the_speed_of_the_disk(tmp_path, monkeypatch):
    """All ranks write at once, and nothing is left of it."""
    monkeypatch.setattr(saving, "PROBE", 2**22)
    speeds = ranks(2, lambda world: saving.disk_speed(tmp_path, world))
    assert all(1e5 < speed < 1e12 for speed in speeds) and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot be written to"):
        saving.disk_speed(tmp_path / "none", WORLD)


def test_what_is_said_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "disk_speed", lambda folder, world: 2e9)
    said = []
    saving.announce(10**6, tmp_path, WORLD, said.append)
    assert not said, "a small one takes no time"
    saving.announce(84 * 10**9, tmp_path, WORLD, said.append)
    saving.announce(2 * KILLED_AFTER * 10**9 + 4 * 10**9, tmp_path, WORLD, said.append)
    assert said == [
        "a checkpoint of 84.0 GB takes about 42 s at 2.00 GB/s, less than the 110 s between SIGTERM and the "
        "kill: a stopped run saves",
        "a checkpoint of 224.0 GB takes about 112 s at 2.00 GB/s, more than the 110 s between SIGTERM and "
        "the kill: a stopped run resumes from its last checkpoint; launch.save_minutes limits what it loses",
    ]


def test_bytes_of_a_checkpoint():
    model = torch.nn.Linear(10, 10)
    assert [saving.checkpoint_bytes(model, zero) for zero in range(4)] == [1760, 1320, 1320, 1320]
