"""The host does not wait for a GPU within an update.

Checked on the device "meta", whose tensors have no values to be read.
"""

from __future__ import annotations

import dataclasses
import traceback

import numpy as np
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
    Tokenizer,
    pair,
    rollouts,
    settings,
    task,
)
from tiny_models import make
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from minillm.config.sections import Sampling
from minillm.data.batching import collate
from minillm.evaluation.calibration import LabelQuestion, label_logprobs
from minillm.models.head import response_hidden
from minillm.runtime.processes import World
from minillm.sampling.logit_filters import Filters, NgramBlock
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


class Reads(TorchFunctionMode):
    """Counts the reads of a device's numbers that are written out in our code, by name."""

    NAMES = ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in self.NAMES:
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_the_ngram_block_reads_the_tokens_and_the_rows_once():
    prompts = PROMPTS[:4]
    filters = Filters(Sampling(no_repeat_ngram=2), prompts)
    alive, blocked = torch.arange(4), NgramBlock(2, prompts)
    for step in range(6):
        if step == 3:
            alive = alive[torch.tensor([True, False, True, True])]
        drawn, logits = (alive * 5 + step) % VOCABULARY, torch.randn(len(alive), VOCABULARY)
        expected = blocked.block(alive.tolist(), logits)
        for row, token in zip(alive.tolist(), drawn.tolist(), strict=True):
            blocked.add(row, token)
        with Reads() as reads:
            found = filters(alive, logits)
            filters.add(alive, drawn)
        assert torch.equal(found, expected)
        assert reads.names == ["tolist"] * (2 if step in (0, 3) else 1)


def test_calibration_reads_once_a_batch():
    """However many labels and rows it has."""
    model = make("llama", 1)
    words = tuple(np.array(word) for word in ([1], [2], [3, 4], [3, 5]))
    questions = [LabelQuestion(i, 0, prompt, words, 0) for i, prompt in enumerate(PROMPTS)]
    with Reads() as reads:
        found = label_logprobs(model, Tokenizer(), questions, batch=4)
    # One pass a question gives all words; transformers looks at the padding of each batch (__bool__).
    batches = len(PROMPTS) // 4
    assert reads.names.count("cpu") == batches and reads.names.count("__bool__") <= 2 * batches
    # What is summed is on the host by then.
    assert reads.names.index("__float__") > reads.names.index("cpu")
    for question, row in zip(questions, found, strict=True):
        for word, value in zip(words, row, strict=True):
            ids = torch.tensor([[*question.prompt, *word]])
            logs = model(input_ids=ids).logits[0, :, :VOCABULARY].double().log_softmax(-1)
            expected = sum(logs[len(question.prompt) - 1 + k, token].item() for k, token in enumerate(word))
            assert value == pytest.approx(expected, abs=1e-4)


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
    with Reads() as reads:
        float(numbers[0]), numbers.tolist(), numbers[0].item(), numbers.cpu()
    assert reads.names == ["__float__", "tolist", "item", "cpu"]
