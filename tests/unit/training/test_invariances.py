"""What must not change the loss or its gradient, in every preset.

Padding, splits, shifts of the logits, padded vocabularies, order.
"""

import dataclasses
import subprocess
from pathlib import Path

import pytest
import torch
from onpolicy_case import COUNT, EOS, gradient, pair, rollouts, settings, task
from torch.nn import functional
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.data.batching import Batch, collate
from minillm.models.tiled_loss import Head
from minillm.training import mini_batch

presets = pytest.mark.parametrize("preset", ["paper", "released", "default"])
trained_presets = pytest.mark.parametrize(
    "preset", ["paper", "released"]
)  # by an optimizer's step in processes of their own
HERE = Path(__file__).parents[2] / "helpers"
TWO = Launch(micro_batch=2)


def build(preset, family="llama", **changes):
    chosen = settings(preset, **changes)
    student, teacher = pair(family)
    return student, rollouts(student, teacher, chosen), task(teacher, chosen)


def assert_same(a, b, tolerance=1e-9):
    assert a[0] == pytest.approx(b[0], abs=tolerance)
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        assert_close(
            a[1][name],
            b[1][name],
            atol=tolerance,
            rtol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def padded(batch, left, right):
    """The batch with more padding on either side of prompt and response."""

    def pad(values, fill=0):
        return functional.pad(values, (left, right), value=fill)

    attention = pad(batch.attention)
    mask = functional.pad(batch.mask, (0, right))
    return Batch(
        pad(batch.tokens, EOS), attention, (attention.cumsum(-1) - 1).clamp(min=0), mask, batch.start + left
    )


@presets
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 4), (2, 5)])
def test_amount_and_side_of_padding(monkeypatch, preset, family, left, right):
    student, made, work = build(preset, family)
    before = gradient(student, made, work)
    monkeypatch.setattr(
        mini_batch, "collate", lambda examples, pad: padded(collate(examples, pad), left, right)
    )
    wider = {
        f: functional.pad(getattr(made, f), (0, right))
        for f in ("mask", "student_logprobs", "teacher_logprobs", "reverse_kl")
    }
    assert_same(before, gradient(student, dataclasses.replace(made, **wider), work))


@presets
@pytest.mark.parametrize(
    "launch",
    [Launch(micro_batch=COUNT), Launch(micro_batch=3), Launch(micro_batch=1), Launch(micro_tokens=40)],
    ids=("half", "three", "one by one", "tokens"),
)
def test_micro_batches(preset, launch):
    """Several sizes of the micro-batches.

    Half of samples and plain text, a number that does not divide them, single rows, as many as a budget of
    tokens allows.
    """
    student, made, work = build(preset)
    assert_same(gradient(student, made, work), gradient(student, made, work, launch))


@presets
def test_shift_of_the_logits(monkeypatch, preset):
    student, made, work = build(preset)
    before = gradient(student, made, work)
    original = Head.finish

    def shifted(head, product):
        logits = original(head, product)
        return logits + 5 * torch.randn(
            len(logits), 1, dtype=logits.dtype, generator=torch.Generator().manual_seed(8)
        )

    monkeypatch.setattr(Head, "finish", shifted)
    assert_same(before, gradient(student, made, work))


@presets
def test_padded_vocabulary(preset):
    """More rows in the output matrix, as Qwen's large models have them, change nothing.

    Neither samples nor loss nor gradient.
    """
    chosen = settings(preset)
    student, teacher = pair()
    made = rollouts(student, teacher, chosen)
    before = gradient(student, made, task(teacher, chosen))
    torch.manual_seed(9)
    for model, rows in ((student, 20), (teacher, 17)):
        model.resize_token_embeddings(rows, mean_resizing=False)
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            matrix.data[13:] = 3 * torch.randn_like(matrix.data[13:])
    again = rollouts(student, teacher, chosen)
    assert [r.tolist() for r in again.responses] == [r.tolist() for r in made.responses]
    loss, found = gradient(student, again, task(teacher, chosen))
    for name in [n for n, g in found.items() if len(g) == 20]:
        assert (found[name][13:] == 0).all()
        found[name] = found[name][:13]
    assert_same(before, (loss, found), 1e-6)  # recorded log-probabilities are float32


@presets
def test_pad_may_be_eos(preset):
    chosen = settings(preset)
    student, teacher = pair()
    made, other = rollouts(student, teacher, chosen, pad=EOS), rollouts(student, teacher, chosen, pad=12)
    assert [r.tolist() for r in made.responses] == [r.tolist() for r in other.responses]
    assert any(r[-1] == EOS for r in made.responses) and any(EOS in p for p in made.prompts)
    assert_same(
        gradient(student, made, task(teacher, chosen, EOS)),
        gradient(student, other, task(teacher, chosen, 12)),
        1e-6,
    )


@presets
def test_order_of_rows(preset):
    student, made, work = build(preset)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    names = ("mask", "student_logprobs", "teacher_logprobs", "reverse_kl")
    turned = dataclasses.replace(
        made,
        prompts=[made.prompts[i] for i in order],
        responses=[made.responses[i] for i in order],
        **{name: getattr(made, name)[order] for name in names},
    )
    assert_same(gradient(student, made, work, TWO), gradient(student, turned, work, TWO))
    assert_same(gradient(student, made, work, TWO), gradient(student, made, work, TWO, order))


def updates(processes, folder, python, warm):
    """Weights after one optimizer step under DeepSpeed: {(preset, accumulation): weights}."""
    out = folder / f"{processes}.pt"
    command = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = warm | {"TORCH_EXTENSIONS_DIR": str(folder / "compiled")}
    subprocess.run(
        [*command, str(HERE / "one_update.py"), str(out)], check=True, timeout=400, env=environment
    )
    return torch.load(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("updates")


@pytest.fixture(scope="module")
def steps(folder, python, warm):
    return {processes: updates(processes, folder, python, warm) for processes in (1, 2)}


def test_nothing_is_compiled(steps, folder):
    """Neither a compiler is needed, nor can the lock of a build that was killed stop a later run."""
    assert not (folder / "compiled").exists()


@trained_presets
@pytest.mark.parametrize("accumulation", [2, 4, "budget"])
def test_gradient_accumulation(steps, preset, accumulation):
    one, several = steps[1][preset, 1], steps[1][preset, accumulation]
    assert (one - steps[1]["before"]).abs().max() > 1e-4, "the step moves the weights"
    assert_close(several, one, atol=2e-6, rtol=1e-5)


@trained_presets
@pytest.mark.parametrize("accumulation", [1, "budget"])
def test_two_processes(steps, preset, accumulation):
    assert_close(steps[2][preset, accumulation], steps[1][preset, 1], atol=2e-6, rtol=1e-5)
