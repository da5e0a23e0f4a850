"""`make gpu-check` at toy size: its page, what makes it fail, what it leaves out."""

import contextlib
import dataclasses
import fcntl
import json
import sys
import time
import types

import pytest
import torch
from torch import nn

from benchmarks import child
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import graphs, log_ratio, page, rollouts, sizes
from benchmarks.gpu_check.page import Outcome
from benchmarks.gpu_check.result import Result, least, most, read
from benchmarks.workload import EOS

MACHINE = {
    "device": "cuda", "gpus": ["A GPU, 80 GiB"], "processor": "A processor", "threads": 8,
    "system": "Linux", "python": "3.12.1", "cuda": "13.0", "commit": "abc",
    "versions": {"torch": "2.12.0", "transformers": "5", "deepspeed": "0.19", "triton": None, "vllm": None},
}  # fmt: skip
GOOD = Outcome(
    "one", "the first", 12.3, Result([most("a", 0.1, 0.2), least("b", 2.0, 1.0)], {"seen": [1.5, 2]})
)
BAD = Outcome("two", "the second", 1.0, Result([most("a", 0.1, 0.2), most("c", 0.3, 0.2)]))
LEFT = Outcome("three", "the third", 0.0, Result(skipped="X is not installed"))
BROKEN = Outcome("four", "the fourth", 2.0, Result(), "it ended with status 1\nTraceback | ...")


@pytest.fixture
def rehearsal(monkeypatch, tmp_path):
    """Runs the command on what `answers` gives instead of processes; returns (exit status, JSON, page)."""
    asked = []

    def run(answers, *words):
        def ask(module, shape, processes, limit):
            asked.append((module, shape, processes, limit))
            result = answers(module.rpartition(".")[2])
            return json.loads(json.dumps(dataclasses.asdict(result)))

        monkeypatch.setattr(child, "ask", ask)
        monkeypatch.setenv("DEVICE", "cpu")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(sys, "argv", ["gpu-check", "--out", str(tmp_path), *words])
        status = gpu_check.main()
        written = json.loads((tmp_path / "gpu-check.json").read_text())
        return status, written, (tmp_path / "gpu-check.md").read_text()

    run.asked = asked
    return run


def test_a_rehearsal_runs_every_check_and_writes_both_files(rehearsal):
    status, written, text = rehearsal(lambda name: Result([most("a", 0, 1)], {"of": name}))
    assert status == 0 and not written["failed"]
    assert [entry["name"] for entry in written["checks"]] == list(gpu_check.CHECKS)
    assert all(entry["state"] == "passed" and entry["seconds"] >= 0 for entry in written["checks"])
    assert written["machine"]["versions"]["torch"] == torch.__version__
    assert "A rehearsal on a CPU" in text and f"torch {torch.__version__}" in text
    assert {shape for _, shape, _, _ in rehearsal.asked} == {sizes.TOY}
    # Only ZeRO takes the second one.
    assert [count for module, _, count, _ in rehearsal.asked if module.endswith("zero")] == [2]
    assert {count for module, _, count, _ in rehearsal.asked if not module.endswith("zero")} == {1}


def test_a_missed_limit_or_a_broken_check_fails(rehearsal):
    def one_misses(name):
        return Result([most("a", 2 if name == "zero" else 0, 1)])

    status, written, text = rehearsal(one_misses)
    assert status == 1 and written["failed"] and "failed: zero" in text

    def one_breaks(name):
        if name == "resume":
            raise RuntimeError("it ended with status 3")
        return Result([most("a", 0, 1)])

    status, written, text = rehearsal(one_breaks, "--only", "zero", "resume")
    assert status == 1 and "failed: resume" in text and "it ended with status 3" in text


def test_what_is_not_installed_is_said_and_the_rest_runs(rehearsal, monkeypatch):
    usual = page.installed
    monkeypatch.setattr(page, "installed", lambda name: None if name == "deepspeed" else usual(name))
    status, written, text = rehearsal(lambda name: Result([most("a", 0, 1)]))
    assert status == 0
    ran = [entry["name"] for entry in written["checks"] if entry["state"] == "passed"]
    assert ran == [name for name, check in gpu_check.CHECKS.items() if not check.trains] and len(ran) == 2
    assert (
        "Not installed: deepspeed" in text and "| zero | DeepSpeed is not installed | | | skipped |" in text
    )


def test_without_a_gpu_it_says_how_to_rehearse(monkeypatch, capsys):
    monkeypatch.delenv("DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu-check"])
    assert gpu_check.main() == 2
    assert "DEVICE=cpu make gpu-check" in capsys.readouterr().err


def test_the_page():
    outcomes = [GOOD, BAD, LEFT, BROKEN]
    lines = page.markdown(MACHINE, outcomes).splitlines()
    assert "**1 passed; failed: two, four; skipped: three**, in 15 s." in lines
    assert "| one | a | 0.1 | ≤ 0.2 | passed | 12 |" in lines and "|  | b | 2 | ≥ 1 | passed |  |" in lines
    assert "|  | c | 0.3 | ≤ 0.2 | failed |  |" in lines
    assert "| three | X is not installed | | | skipped | 0 |" in lines
    assert "| four | it ended with status 1 | | | failed | 2 |" in lines
    assert "| seen | 1.5, 2 |" in lines and "Traceback | ..." in lines
    assert page.remarks(MACHINE) == [
        "Not installed: triton (torch compiles nothing on a GPU), "
        "vllm (no check uses it so far: rollouts are compared with `generate`)."
    ]
    old = MACHINE | {"versions": dict.fromkeys(MACHINE["versions"], "2.10.1+cu130")}
    assert page.remarks(old) == ["torch 2.10 was never tried: 2.11 to 2.13 are."]
    assert most("nan", float("nan"), 1).met is False


def test_a_check_that_hangs_ends_with_all_its_processes(monkeypatch, tmp_path):
    """What it has started holds a lock, which the system frees when it ends."""
    lock = tmp_path / "lock"
    (tmp_path / "holding.py").write_text(
        f"import fcntl, time\nfile = open({str(lock)!r}, 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nfile.write('held')\nfile.flush()\ntime.sleep(600)\n"
    )
    (tmp_path / "hanging.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'holding'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"took more than 8 s"):
        child.ask("hanging", sizes.TOY, limit=8)
    assert lock.read_text() == "held"
    # Killed processes take a while to end on a busy machine.
    with open(lock, "r+") as file:
        for _ in range(300):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.1)
    pytest.fail("a process of the check lives on")


def test_every_check_is_a_module_that_answers():
    for name in gpu_check.CHECKS:
        module = __import__(f"benchmarks.gpu_check.{name}", fromlist=["run"])
        assert isinstance(module.run, types.FunctionType) and module.__doc__


# --- the checks that need no engine, at toy size
def test_the_log_ratio_has_limits(monkeypatch):
    """They are kept here, and not if training differs from decoding by what rounded logits cost."""
    usual = log_ratio.training_logprobs
    result = log_ratio.run(sizes.TOY)
    assert len(result.limits) == 4 and all(limit.met for limit in result.limits), result

    def rounded(*words):
        values = usual(*words)
        return values + 0.08 * torch.randn(len(values), generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(log_ratio, "training_logprobs", rounded)
    assert not any(limit.met for limit in log_ratio.run(sizes.TOY).limits)


def test_shifted_logits_are_the_same_distribution():
    logits = []
    for offset in log_ratio.OFFSETS:
        model = log_ratio.shifted_model(sizes.TOY.student, sizes.TOY, 1, offset)
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([[5, 6, 7]])).logits[..., EOS + 1 :])
    assert torch.allclose(logits[1] - logits[0], torch.tensor(-96.0), atol=1e-4)
    assert logits[0].std() > 0.5


def test_the_log_ratio_of_training_passes():
    """Against whole logits in float64."""
    model = nn.Module.to(log_ratio.shifted_model(sizes.TOY.student, sizes.TOY, 1, 0.0), torch.float64)
    examples = [
        (torch.tensor(p).numpy(), torch.tensor(r).numpy()) for p, r in (([5, 6], [7, 8, 9]), ([4], [3]))
    ]
    found = log_ratio.training_logprobs(model, examples, sizes.TOY.vocabulary)
    expected = []
    for prompt, response in examples:
        logs = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        expected += [logs[len(prompt) - 1 + t, token] for t, token in enumerate(response)]
    assert torch.allclose(found, torch.stack(expected))


def test_rollouts_are_compared_at_equal_lengths():
    result = rollouts.run(dataclasses.replace(sizes.TOY, response=3))
    assert result.limits[0].value > 0 and len(result.values) >= 3
    assert read(json.loads(json.dumps(dataclasses.asdict(result)))) == result


def test_graphs_are_left_out_where_there_are_none():
    if not any("graph" in field.name for field in dataclasses.fields(sizes.Launch)):
        assert graphs.run(sizes.TOY).skipped
