"""Two processes train as one does: the same rollouts, losses and (up to the order of sums) weights."""

import json

import pytest
from safetensors.torch import load_file

STUDENT, TEACHER = "tiny-student", "tiny-teacher"


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("zero", "shard_teacher"), [(1, False), (2, False), (3, False), (1, True), (3, True)]
)
def test_minillm_on_two_processes(finished, tmp_path, zero, shard_teacher):
    run = finished.run
    # Each layer is spread over the processes, however small, as those of a real model are.
    template = finished.folder / "minillm/runtime/deepspeed/zero3.json"
    values = json.loads(template.read_text())
    values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    template.write_text(json.dumps(values))
    original = run / "models" / STUDENT / "minillm" / TEACHER / "seed10"
    launch = {
        "zero": zero,
        "micro_batch": 2,
        "eval_batch": 16,
        "save_every": 100,
        "log_every": 1,
        "shard_teacher": shard_teacher,
    }
    config = run / f"configs/minillm/{STUDENT}/{TEACHER}/10.json"
    arguments = [
        *("minillm", "--config", config, "--data", run / "data/embedded/training"),
        *("--init", run / "models" / STUDENT / "init/seed10"),
        *("--teacher", run / "models" / TEACHER / "teacher", "--out", tmp_path / "model"),
        *("--checkpoints", tmp_path / "checkpoints", "--launch", json.dumps(launch)),
    ]
    torchrun = [
        finished.python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "minillm",
    ]
    process = finished.start([*torchrun, *map(str, arguments)])
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output[-4000:]
    record = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert record["world_size"] == 2 and record["deepspeed"]["zero_optimization"]["stage"] == zero
    ours, theirs = read(tmp_path / "model"), read(original)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for key in set(a) - {"seconds"}:
            # A mean over no tokens is null.
            same = b[key] if b[key] is None else pytest.approx(b[key], rel=1e-3, abs=1e-4)
            assert a[key] == same, (a["step"], key)
    weights, expected = (
        load_file(tmp_path / "model" / "model.safetensors"),
        load_file(original / "model.safetensors"),
    )
    assert weights.keys() == expected.keys()
    assert max((weights[name] - expected[name]).abs().max().item() for name in expected) < 1e-4
