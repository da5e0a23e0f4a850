"""Gradients that are NaN or infinite: a step is left out, counted and logged; several end the run."""

import json
import subprocess
import types
from pathlib import Path

import pytest

from minillm.errors import UserError
from minillm.runtime.engine import Engine
from minillm.runtime.skipped import LIMIT, NAMED, SkippedSteps

HELPER = Path(__file__).parents[2] / "helpers" / "skipped_steps.py"
EVERY = [f"{zero} {precision}" for zero in range(4) for precision in ("fp32", "bf16")]


@pytest.fixture(scope="module", params=[1, 2])
def found(request, tmp_path_factory, python, warm):
    out = tmp_path_factory.mktemp("skipped") / "out.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [python, *(torchrun if request.param == 2 else []), str(HELPER), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=warm)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return request.param, json.loads(out.read_text())


def no_constant(name):
    raise AssertionError(f"metrics.jsonl holds {name}, which is no JSON")


@pytest.mark.parametrize("case", EVERY)
def test_a_step_is_left_out_and_the_log_says_so(found, case):
    seen = found[1][case]
    assert seen["moved"] == [True, False, True, False] and seen["finite"]
    lines = [json.loads(line, parse_constant=no_constant) for line in seen["metrics"].splitlines()]
    assert [line.get("skipped_steps") for line in lines] == [None, 1.0, 1.0, 2.0]
    assert [line["grad_norm"] is None for line in lines] == [False, True, False, True]
    assert lines[1]["loss"] is None and lines[0]["loss"] > 0
    assert seen["resumed"] == 2


@pytest.mark.parametrize("case", EVERY)
def test_several_in_a_row_end_the_run_on_every_rank(found, case):
    processes, results = found
    seen = results[case]
    rows = ", ".join(map(str, range(100, 108)))
    assert seen["unchanged"] and len(seen["error"]) == processes
    for line in seen["error"]:
        # The last step of the checkpoint counts.
        assert line.startswith(f"step {3 + LIMIT}: NaN or infinite gradients, {LIMIT} steps in a row")
        assert f"rows {rows}:" in line and "\n" not in line


class Fake:
    """As much of a DeepSpeed engine in fp16 as the count asks for."""

    def __init__(self, scale):
        self.skipped_steps, self.optimizer = (
            0,
            type("Optimizer", (), {"overflow": False, "loss_scale": scale})(),
        )

    def fp16_enabled(self):
        return True


def test_the_search_for_a_loss_scale_is_no_fault():
    engine = Fake(2.0**16)
    count = SkippedSteps(engine, 1000)
    for step in range(1, 18):
        engine.skipped_steps += 1
        engine.optimizer.loss_scale = max(2.0, engine.optimizer.loss_scale / 2)
        count.check(step, [], look=True)
    engine.optimizer.loss_scale = 1.0
    engine.skipped_steps += 1
    with pytest.raises(UserError, match="step 18: NaN or infinite gradients, 18 steps in a row"):
        count.check(18, [], look=True)


def test_a_loss_scale_that_cannot_fall_is_a_line_too():
    """DeepSpeed's own error, which is raised on every rank."""

    def step():
        raise Exception("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.")

    deepspeed = Fake(1.0)
    deepspeed.step = step
    engine = types.SimpleNamespace(engine=deepspeed, skipped=SkippedSteps(deepspeed, 1000), step=7)
    with pytest.raises(UserError, match="^step 8: NaN or infinite gradients, 1 steps in a row, .*rows 3:"):
        Engine._optimizer_step(engine, [3])


def test_a_run_shorter_than_the_limit_and_many_rows():
    engine = Fake(1.0)
    count = SkippedSteps(engine, 2)
    for step in (1, 2):
        engine.skipped_steps += 1
        if step == 1:
            count.check(step, [], look=True)
    with pytest.raises(UserError, match=f"rows 0, .*, {NAMED - 1} and 3 more: look at them"):
        count.check(2, range(NAMED + 3), look=True)
