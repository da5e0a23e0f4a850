"""ZeRO 0 to 3 on one and two processes.

With an optimizer on the CPU's side, and with a teacher that is spread over the processes: losses of a loop
without DeepSpeed, exact resuming, another number of processes.
"""

import itertools
import subprocess
from pathlib import Path

import pytest
import torch
from onpolicy_case import (
    COUNT,
    EOS,
    PROMPTS,
    VOCABULARY,
    WHOLE,
    OneProcess,
    Prompts,
    pair,
    rollouts,
    settings,
    task,
)
from torch.testing import assert_close
from zero_case import CASES, CHANGED, KINDS, STEPS, supervised

from minillm.data.batching import collate
from minillm.runtime.schedule import learning_rate
from minillm.training.rollout_losses import micro_batches
from minillm.training.supervised_loss import example_loss

HERE = Path(__file__).parents[2] / "helpers"
PROCESSES = (1, 2)
every = pytest.mark.parametrize(("kind", "name"), CASES)


def same_losses(found, expected):
    """Within 1e-5, and 1e-6 of a loss above one.

    MiniLLM's are near 40 here, where float32 itself rounds to 4e-6.
    """
    assert_close(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        atol=1e-5,
        rtol=1e-6,
    )


@pytest.fixture(scope="module")
def start(python, warm):
    """zero_steps.py as so many processes; what it saved."""

    def run(processes, *arguments):
        prefix = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
        )
        command = [python, *prefix, str(HERE / "zero_steps.py"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=warm)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return torch.load(arguments[0])

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def whole(start, folder):
    return {processes: start(processes, folder / f"{processes}.pt", folder) for processes in PROCESSES}


@pytest.fixture(scope="module")
def resumed(start, whole, folder):
    """(processes that saved, processes that went on) -> the last ten steps."""
    pairs = itertools.product(PROCESSES, PROCESSES)
    return {(saved, then): start(then, folder / f"{saved}-{then}.pt", folder, saved) for saved, then in pairs}


@pytest.fixture(scope="module")
def plain():
    """kind -> (losses, weights) of a loop of torch alone: whole batches, AdamW, clipped gradients."""
    found = {}
    for kind in KINDS:
        student, teacher = (model.float() for model in pair())
        chosen = settings("paper", lr=1e-3, warmup=2) if kind == "minillm" else supervised()
        made = rollouts(student, teacher, chosen) if kind == "minillm" else None
        decays = [[p for p in student.parameters() if (p.ndim > 1) == matrices] for matrices in (True, False)]
        groups = [
            {"params": group, "weight_decay": decay}
            for group, decay in zip(decays, (chosen.weight_decay, 0.0), strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, betas=chosen.betas)
        student.eval()
        losses = []
        for step in range(STEPS):
            if made is None:
                examples = [(prompt, Prompts().response(i)) for i, prompt in enumerate(PROMPTS)]
                tokens = sum(len(response) for _, response in examples)
                loss = example_loss(
                    student,
                    collate(examples, EOS),
                    VOCABULARY,
                    tokens,
                    teacher if kind == "kd" else None,
                    0.5,
                )
            else:
                [part], of = micro_batches(
                    OneProcess(student, WHOLE, step=step), task(teacher, chosen), made, list(range(COUNT))
                )
                loss, _ = of(part)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), chosen.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(chosen, step, STEPS)
            optimizer.step()
            losses.append(loss.item())
        found[kind] = losses, torch.cat([p.detach().flatten() for p in student.parameters()])
    return found


@pytest.mark.parametrize("processes", PROCESSES)
@every
def test_losses_of_a_loop_without_deepspeed(whole, plain, processes, kind, name):
    losses, weights = whole[processes][kind, name]
    expected, target = plain[kind]
    assert len(losses) == STEPS and abs(expected[-1] - expected[0]) > 1e-2, "the steps change the loss"
    same_losses(losses, expected)
    assert_close(weights, target, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("processes", PROCESSES)
@every
def test_resuming_is_exact(whole, resumed, processes, kind, name):
    losses, weights = whole[processes][kind, name]
    again, same = resumed[processes, processes][kind, name]
    assert again == losses[STEPS // 2 :]
    assert torch.equal(same, weights)


@pytest.mark.parametrize(("saved", "then"), [(2, 1), (1, 2)])
@every
def test_another_number_of_processes_goes_on(whole, resumed, saved, then, kind, name):
    losses, weights = whole[then][kind, name]
    again, found = resumed[saved, then][kind, name]
    same_losses(again, losses[STEPS // 2 :])
    assert_close(found, weights, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize(("before", "now"), CHANGED)
def test_another_zero_stage_goes_on(whole, resumed, processes, before, now):
    """Exactly with one process; with two, stages 1 and 2 themselves add gradients in another order."""
    losses, weights = whole[processes]["sft", now]
    again, found = resumed[processes, processes]["sft", f"{before} to {now}"]
    if processes == 1:
        assert again == losses[STEPS // 2 :] and torch.equal(found, weights)
    same_losses(again, losses[STEPS // 2 :])
    assert_close(found, weights, atol=1e-4, rtol=1e-3)


# --- the conversion for another number of processes
def pieces(out):
    """File name -> (what it holds, when it was written) of the weights that are put together."""
    found = {}
    for path in sorted((out / "zero").rglob("*.pt")):
        found[path.relative_to(out).as_posix()] = (
            torch.load(path, weights_only=False),
            path.stat().st_mtime_ns,
        )
    return found


def same_tensors(found, expected):
    """Whether all tensors of what a file of the universal form holds are equal."""
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(same_tensors(found[k], expected[k]) for k in found)
    return not isinstance(found, torch.Tensor) or torch.equal(found, expected)


@pytest.mark.parametrize("zero", ["1", "3"])
def test_an_interrupted_conversion_is_resumed(whole, folder, zero, tmp_path, monkeypatch):
    """It fails at one weight: what is finished by then is not made again, and the result is the same."""
    from minillm.runtime import convert

    [saved] = (folder / f"sft-{zero}-of-2").glob("step-*")
    merge = "merge_zero3_slices" if zero == "3" else "merge_tp_slices"
    convert.main(saved / "deepspeed", tmp_path / "at once")
    expected = pieces(tmp_path / "at once")
    assert not (tmp_path / "at once" / "tmp").exists() and len(expected) > 10

    def fails(*arguments):
        if "norm" in str(arguments[-1]):
            raise OSError("killed")
        return merged(*arguments)

    merged = convert.ORIGINAL[merge]
    with monkeypatch.context() as patched:
        patched.setitem(convert.ORIGINAL, merge, fails)
        with pytest.raises(OSError, match="killed"):
            convert.main(saved / "deepspeed", tmp_path / "out")
    before = pieces(tmp_path / "out")
    parts = {path.name for path in (tmp_path / "out" / "tmp").iterdir()}
    assert 0 < len(before) < len(expected)
    # Parts of a weight go when it is put together.
    assert parts and not parts & {name.split("/")[1] for name in before}
    taken_apart = sorted((tmp_path / "out" / "finished").glob("process-*"))
    times = [path.stat().st_mtime_ns for path in taken_apart]
    assert len(times) == 2
    convert.main(saved / "deepspeed", tmp_path / "out")
    after = pieces(tmp_path / "out")
    assert [path.stat().st_mtime_ns for path in taken_apart] == times
    assert after.keys() == expected.keys()
    for name, (values, written) in after.items():
        if name in before:
            assert written == before[name][1]
        assert same_tensors(values, expected[name][0]), name
    # Finished: nothing to do.
    convert.main(saved / "deepspeed", tmp_path / "out")
    assert {name: written for name, (_, written) in pieces(tmp_path / "out").items()} == {
        name: written for name, (_, written) in after.items()
    }


def test_a_checkpoint_has_12_bytes_per_parameter(whole, folder):
    """Under ZeRO 1 to 3: no weights that a resumed run computes from the float32 ones (4 more before)."""
    for zero in ("1", "2", "3"):
        [saved] = (folder / f"sft-{zero}-of-2").glob("step-*")
        tensors = 0
        for path in (saved / "deepspeed").glob("*.pt"):
            found = torch.load(path, weights_only=False)
            assert not found.get("module") or all(not value.numel() for value in found["module"].values())
            tensors += storages(found)
        count = sum(p.numel() for p in pair()[0].parameters())
        # Padding of the shards, steps, shapes.
        assert 12 * count <= tensors <= 12 * count + 4000


def storages(value, seen=None):
    """Bytes of all tensors in it, each memory once."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        place = value.untyped_storage().data_ptr()
        new = place not in seen
        seen.add(place)
        return value.untyped_storage().nbytes() * new
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(storages(part, seen) for part in inner)
