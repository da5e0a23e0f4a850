"""The gradient's variance from micro-batches: unbiased, the same under every ZeRO stage, without effect."""

import itertools
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from onpolicy_case import COUNT, WHOLE, OneProcess, pair, rollouts, settings, task

from minillm.runtime.gradient_variance import variance
from minillm.training.rollout_losses import micro_batches

HERE = Path(__file__).parents[2] / "helpers"
STAGES = (0, 1, 2, 3)


@pytest.mark.parametrize("split", [(1, 1, 1, 1), (2, 2), (1, 3), (1, 1, 2), (3, 1)])
def test_unbiased_over_all_draws(split):
    """Every batch of four rows of a population of three, drawn with replacement, with its probability."""
    rng = np.random.default_rng(3)
    population, chances = rng.normal(size=(3, 5)) + 2, np.array([0.2, 0.5, 0.3])
    estimate, mean, second = 0.0, np.zeros(5), 0.0
    for drawn in itertools.product(range(3), repeat=4):
        chance = math.prod(chances[i] for i in drawn)
        rows, parts, start = population[list(drawn)], [], 0
        for size in split:
            parts.append(rows[start : start + size].sum(0))
            start += size
        whole = rows.sum(0)
        estimate += chance * variance([float(g @ g) for g in parts], split, float(np.linalg.norm(whole)))
        mean, second = mean + chance * whole, second + chance * float(whole @ whole)
    assert estimate == pytest.approx(second - float(mean @ mean), rel=1e-12)


def test_one_micro_batch_has_none():
    assert math.isnan(variance([2.0], [4], 1.0)) and variance([1.0, 1.0], [2, 2], 0.0) == 4.0


@pytest.fixture(scope="module", params=[1, 2])
def found(request, tmp_path_factory, python, warm):
    """What variance_steps.py saved, as one process and as two."""
    out = tmp_path_factory.mktemp("variance") / "out.pt"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [python, *(torchrun if request.param == 2 else []), str(HERE / "variance_steps.py"), str(out)]
    done = subprocess.run(
        [*command, *map(str, STAGES)], capture_output=True, text=True, timeout=400, env=warm
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return torch.load(out)


@pytest.fixture(scope="module")
def gradients():
    """Row -> its gradient: of one sample or chunk of plain text, by itself, as a vector in float64."""
    chosen = settings("paper", warmup=0, lr=1e-2)
    student, teacher = (model.float() for model in pair())
    made = rollouts(student, teacher, chosen)
    student, teacher = student.double(), teacher.double()
    parts, loss = micro_batches(OneProcess(student, WHOLE), task(teacher, chosen), made, list(range(COUNT)))
    by_row = {}
    for row in itertools.chain.from_iterable(parts):
        student.zero_grad()
        loss([row])[0].backward()
        by_row[row] = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    return by_row


@pytest.mark.parametrize("zero", STAGES)
def test_of_a_whole_update_under_every_stage(found, gradients, zero):
    logged, without, weights, same = found[zero]
    parts = [part for rank in found["parts"] for part in rank]
    sums = [sum(gradients[row] for row in part).numpy() for part in parts]
    count, rows = len(parts), sum(map(len, parts))
    assert count > 3 and len(set(map(len, parts))) > 1 and rows == 2 * COUNT
    mean, spread = sum(sums) / rows, 0.0
    # Another form of the estimate: the micro-batches' squared distances from their share of the whole.
    for part, gradient in zip(parts, sums, strict=True):
        spread += float(((gradient / len(part) - mean) ** 2).sum()) * len(part)
    assert logged["grad_variance"] == pytest.approx(rows * spread / (count - 1), rel=1e-4)
    assert logged["grad_norm"] == pytest.approx(float(np.linalg.norm(sum(sums))), rel=1e-4)
    assert torch.equal(weights, same)
    assert {name: value for name, value in logged.items() if name != "grad_variance"} == without
