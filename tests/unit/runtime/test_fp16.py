"""fp16: the loss scale falls until nothing overflows.

Steps until then are left out and counted, and a resumed run has the same scale.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from zero_case import STEPS, supervised

from minillm.config.launch import Launch
from minillm.errors import UserError
from minillm.runtime.engine import Engine
from minillm.runtime.processes import World


@pytest.fixture(scope="module")
def runs(tmp_path_factory, python, warm):
    command = [
        python,
        str(Path(__file__).parents[2] / "helpers" / "fp16_steps.py"),
        str(tmp_path_factory.mktemp("fp16")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=warm)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().split("\n")[-1])


@pytest.mark.parametrize("zero", ["1", "2", "3"])
def test_steps_that_overflow_are_left_out(runs, zero):
    whole, _ = runs[zero]
    skipped = [step["skipped_steps"] for step in whole]
    assert skipped[0] == 1 and 1 < skipped[-1] < STEPS, "the first scale, 2^16, is too large for this loss"
    first = skipped.index(skipped[-1]) + 1  # the first step that was not left out
    losses = [step["loss"] for step in whole]
    assert len(set(losses[: first + 1])) == 1 and losses[-1] < losses[first + 1] < losses[0]


@pytest.mark.parametrize("zero", ["1", "2", "3"])
def test_resuming_is_exact(runs, zero):
    whole, again = runs[zero]
    assert again == whole[STEPS // 2 :]


def test_refused_where_torch_cannot(tmp_path, monkeypatch):
    """Some CPUs can, those with AVX512-FP16: which is asked of DeepSpeed, and here answered for all."""
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    world = World(0, 1, torch.device("cpu"))
    with pytest.raises(
        UserError, match="^precision: fp16 cannot be trained on this device; choose bf16 or fp32$"
    ):
        Engine(torch.nn.Linear(1, 1), supervised(), Launch(), world, "fp16", tmp_path, 1)
