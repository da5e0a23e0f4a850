"""The state of a loop in a checkpoint: comes back as it was, and reading it runs nothing."""

import dataclasses
import math
import pickle
import random

import numpy as np
import pytest
import torch
from onpolicy_case import pair, rollouts, settings

from minillm.errors import UserError
from minillm.runtime import state
from minillm.training.rollouts import Entry, Memory, Rollouts


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b) or (a != a and b != b)


def test_a_collection_and_what_is_remembered(tmp_path):
    made = dataclasses.replace(
        rollouts(*pair(), settings("paper")),
        # Views of one storage, as a batch's are.
        teacher_hidden=list(torch.randn(9, 4).to(torch.bfloat16).split([4, 5])),
    )
    memory = Memory(0.3, 1.5, [Entry(3, np.array([1, 2], dtype=np.int32), False)], {"length": 4.0})
    history = [{"step": 3, "dev_rouge": math.nan, "dev_loss": 0.1 + 0.2}]
    value = {"history": history, "rollouts": vars(made), "memory": memory.saved()}
    state.write(tmp_path / "state", value)
    found = state.read(tmp_path / "state")
    assert same(value, found)
    assert same(vars(Rollouts(**found["rollouts"])), vars(made))
    again = Memory.restored(found["memory"])
    assert again.buffer[0].record is None and same(again.saved(), memory.saved())


def test_random_numbers_go_on(tmp_path):
    random.gauss(0, 1)
    np.random.standard_normal()
    state.write(tmp_path / "random", state.random_states())

    def draw():
        return [
            random.gauss(0, 1),
            random.random(),
            np.random.standard_normal(3).tolist(),
            torch.rand(3).tolist(),
        ]

    expected = draw()
    draw()
    state.restore_random_states(state.read(tmp_path / "random"))
    assert draw() == expected


class Trap:
    def __reduce__(self):
        return open, ("trapped", "w")


@pytest.mark.parametrize("content", [pickle.dumps(Trap()), b"", b"\x08\0\0\0\0\0\0\0{}      ", None])
def test_anything_else_is_one_line_and_runs_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "state").write_bytes(content)
    with pytest.raises(UserError, match="delete this checkpoint to resume from the one before") as caught:
        state.read(tmp_path / "state")
    assert "\n" not in str(caught.value) and not (tmp_path / "trapped").exists()


def test_what_could_not_come_back_is_not_written(tmp_path):
    for value in ({1: "a"}, {"$tensor": "0"}, {"a": object()}):
        with pytest.raises(TypeError):
            state.write(tmp_path / "state", value)
