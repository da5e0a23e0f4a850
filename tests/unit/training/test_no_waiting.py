"""The host does not wait for a GPU within an update.

Checked on the device "meta", whose tensors have no values to be read.
"""

from __future__ import annotations

import dataclasses
import traceback

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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from minillm.config.sections import Sampling
from minillm.data.batching import collate
from minillm.models.head import response_hidden
from minillm.runtime.processes import World
from minillm.sampling.sample import Mixture, sample
from minillm.training.rollout_losses import micro_batches
from minillm.training.supervised import example_loss
from minillm.training.teacher_cache import TeacherCache

META = torch.device("meta")


class Sent(TorchFunctionMode):
    """Notes who sends numbers of the host to the device other than through batching.moved.

    batching.moved does not wait on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        from_host = function in (torch.tensor, torch.as_tensor) or any(
            isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in args
        )
        if from_host and any(isinstance(x, torch.Tensor) and x.device == META for x in (made, *args)):
            stack = [frame for frame in traceback.extract_stack() if "/minillm/" in frame.filename]
            if all(frame.name != "moved" for frame in stack):
                self.by.append(
                    f"{function} by {stack[-1].filename}:{stack[-1].lineno}" if stack else str(function)
                )
        return made


def update(chosen, family: str = "llama", keep: bool = True):
    """Loss and backward pass of a mini-batch on the device; what was sent there in the wrong way."""
    student, teacher = (model.float() for model in pair(family))
    made = rollouts(student, teacher, chosen)
    if not keep:
        made = dataclasses.replace(made, teacher_hidden=None)
    engine = OneProcess(student.to(META), WHOLE, World(0, 1, META))
    parts, loss = micro_batches(engine, task(teacher.to(META), chosen), made, list(range(COUNT)))
    with Sent() as sent:
        for part in parts:
            value, _ = loss(part)
            value.backward()
    return sent.by


CASES = {
    "paper": settings("paper"),
    "released": settings("released"),
    "clip and no single step": settings("paper", single_step=False),
    **{
        name: settings("paper", objective=name)
        for name in (
            "forward_kl",
            "reverse_kl",
            "jensen_shannon",
            "skew_forward_kl",
            "skew_reverse_kl",
            "total_variation",
        )
    },
}


@pytest.fixture
def no_look_at_the_padding(monkeypatch):
    """transformers asks once a pass of a model whether there is any padding: one known wait a pass."""
    monkeypatch.setattr(masking_utils, "_ignore_causal_mask_sdpa", lambda *_, **__: False)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_an_update_reads_nothing_back(case, keep, family, no_look_at_the_padding):
    assert not update(CASES[case], family, keep)


@pytest.mark.parametrize("kind", ["sft", "kd", "kd with known hidden states"])
def test_a_supervised_update_reads_nothing_back(kind, no_look_at_the_padding, tmp_path):
    student, teacher = (model.float() for model in pair())
    examples = [(PROMPTS[i], Prompts().response(i)) for i in range(4)]
    batch, world = collate(examples, EOS), World(0, 1, META)
    cache = TeacherCache(tmp_path, [len(response) for _, response in examples], 16, torch.float32, world)
    cache.hidden(range(4), lambda: response_hidden(teacher, batch), torch.device("cpu"))  # the first epoch
    student, teacher = student.to(META), None if kind == "sft" else teacher.to(META)
    with Sent() as sent:
        batch, known = batch.to(META), None
        if kind == "kd with known hidden states":
            known = cache.hidden(range(4), lambda: pytest.fail("known already"), META)
        example_loss(student, batch, VOCABULARY, 12, teacher, 0.5, known).backward()
    assert not sent.by


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading numbers, looking up places of a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, indices = (
            function.overloadpacket.__name__,
            args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else (),
        )
        by_mask = name in ("index", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices
        )
        self.count += by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mixed", [False, True])
def test_sampling_looks_up_nothing_but_at_the_padding(mixed):
    """transformers looks once a model and position, and where rows leave the batch.

    What ours reads of a position is one `tolist`.
    """
    student, teacher = pair()
    chosen, counts = Sampling(max_tokens=9), {}
    for eos in (None, EOS):  # no row ends before its time; some do
        with Waits() as waits:
            found = sample(
                student,
                PROMPTS[:4],
                range(4),
                chosen,
                seed=1,
                step=0,
                eos=-1 if eos is None else eos,
                pad=EOS,
                vocabulary=VOCABULARY,
                mixture=Mixture(teacher, 0.3) if mixed else None,
                record=True,
            )
        counts[eos] = waits.count
    looks = (2 if mixed else 1) * (9 + 1)  # twice where the prompts are read
    assert counts[None] == looks
    assert any(len(response.tokens) < 9 for response in found)
    assert counts[EOS] <= looks + 4 * 3  # rows leave three times at most


def test_what_is_looked_for_is_found():
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.ones(2, device=META).all())
    with Sent() as sent:
        torch.as_tensor(0.5, device=META)
        torch.ones(2).to(META)
        torch.ones(2, device=META) * torch.tensor(2.0)
    assert len(sent.by) == 3
    with Waits() as waits:
        numbers = torch.arange(3)
        numbers[numbers > 1] = 5
        bool(numbers.sum() == 6)
    assert waits.count == 2
