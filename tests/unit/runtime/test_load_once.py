"""Models are loaded straight in the run's precision, and by one process if they are sharded."""

import subprocess
from pathlib import Path

import pytest
import torch
from onpolicy_case import COUNT, WHOLE, pair, rollouts, settings, task
from tiny_models import make

from minillm.config.launch import Launch
from minillm.models import weights
from minillm.models.loading import load_model
from minillm.runtime import load_once
from minillm.runtime.engine import Engine
from minillm.runtime.processes import start
from minillm.training.rollout_losses import micro_batches

HELPER = Path(__file__).parents[2] / "helpers" / "load_once_steps.py"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_process_reads_and_all_have_the_weights(python, warm, tmp_path, precision, family):
    """GPT-2's output matrix is its embedding; LLaMA has buffers that no file holds."""
    make(family, 1).save_pretrained(tmp_path / "model")
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HELPER)]
    arguments = [str(tmp_path / "out.pt"), str(tmp_path / "model"), precision]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=warm)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks, errors = torch.load(tmp_path / "out.pt", weights_only=False)
    expected = load_model(tmp_path / "model", precision)
    for rank, (read, found, kept, same) in enumerate(ranks):
        assert len(read) == (0 if rank else 2) and same
        assert torch.equal(kept, expected.get_output_embeddings().weight)
        for kind in ("student", "teacher"):
            assert found[kind].keys() == expected.state_dict().keys()
            for name, value in expected.state_dict().items():
                assert torch.equal(found[kind][name], value), (rank, kind, name)
    assert len(errors) == 2 and len(set(errors)) == 1 and errors[0].startswith("UserError: ")


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_steps_of_a_model_loaded_in_bf16(tmp_path, zero):
    """Bit for bit those of one loaded in float32: its float32 weights are made of bf16 numbers either way."""
    student, teacher = (model.float() for model in pair())
    student.save_pretrained(tmp_path / "model")
    chosen = settings("released", warmup=0, lr=1e-2)
    made, results = rollouts(student, teacher, chosen), []
    for precision in ("fp32", "bf16"):
        loaded = load_model(tmp_path / "model", precision)
        launch = Launch(micro_batch=WHOLE.micro_batch, zero=zero)
        engine = Engine(loaded, chosen, launch, start(0), "bf16", tmp_path / precision, 2)
        work = task(teacher.bfloat16(), chosen)
        losses = [
            engine.update(*micro_batches(engine, work, made, list(range(COUNT))))["loss"] for _ in range(2)
        ]
        with engine.whole():
            results.append((losses, [p.detach().clone() for p in engine.model.parameters()]))
    (losses, one), (again, other) = results
    assert losses == again and losses[0] != losses[1]
    assert all(map(torch.equal, one, other))


def test_room_without_values(tmp_path):
    """As the real one in all but its values; what is tied stays tied."""
    for family in ("gpt2", "opt", "llama"):
        make(family, 1).save_pretrained(tmp_path / family)
        room = load_once.empty(tmp_path / family, "bf16", torch.device("cpu"))
        real = load_model(tmp_path / family, "bf16")
        assert [(n, p.shape, p.dtype) for n, p in room.named_parameters()] == [
            (n, p.shape, p.dtype) for n, p in real.named_parameters()
        ]
        assert [(n, b.shape, b.dtype) for n, b in room.named_buffers()] == [
            (n, b.shape, b.dtype) for n, b in real.named_buffers()
        ]
        assert not any(p.is_meta for p in room.parameters())
        tied = room.get_output_embeddings().weight is room.get_input_embeddings().weight
        assert tied == (real.get_output_embeddings().weight is real.get_input_embeddings().weight)


def test_weights_are_read_straight_to_a_gpu(tmp_path, monkeypatch):
    """As transformers is asked: nothing is read to the host and moved."""
    make("llama", 1).save_pretrained(tmp_path / "model")
    asked, read = [], weights._from_pretrained

    def noted(source, dtype, **options):
        asked.append((dtype, options.get("device_map")))
        # There is no GPU here.
        return read(source, dtype, **{**options, "device_map": {"": "cpu"}})

    monkeypatch.setattr(weights, "_from_pretrained", noted)
    weights.read_model(
        tmp_path / "model", torch.bfloat16, "here", torch.device("cuda", 1), local_files_only=True
    )
    assert asked[1:] == [(torch.bfloat16, {"": torch.device("cuda", 1)})]
    asked.clear()
    model = weights.read_model(tmp_path / "model", torch.bfloat16, "here", local_files_only=True)
    assert asked[1:] == [(torch.bfloat16, None)] and not model.training
