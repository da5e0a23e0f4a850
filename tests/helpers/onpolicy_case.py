"""A small on-policy update to measure.

Tiny models, eight rollouts of different lengths, plain text, and the gradient of the loss.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tiny_models import make

from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.presets import PRESETS
from minillm.config.sampler import Sampler
from minillm.config.sections import Sampling
from minillm.runtime.engine import Engine
from minillm.runtime.processes import World, start
from minillm.sampling.sample import Mixture, sample
from minillm.training.dev_set import Dev
from minillm.training.mini_batch import Task
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Entry, Rollouts, together

VOCABULARY, EOS = 11, 0
PROMPTS = [
    np.array(p, dtype=np.int32)
    for p in ([3, 4, 5, 6], [7], [1, 2], [9, 8, 7, 6, 5], [0, 4], [2], [5, 5, 1], [10, 3])
]
COUNT = len(PROMPTS)
WHOLE = Launch(micro_batch=2 * COUNT)  # samples and plain text in one micro-batch


class Prompts:
    """Stands for data.Rows."""

    ids = list(range(100, 100 + COUNT))

    def __len__(self) -> int:
        return COUNT

    def prompt(self, i: int) -> np.ndarray:
        return PROMPTS[i]

    def response(self, i: int) -> np.ndarray:
        return np.array([i % 9 + 1, 2, EOS], dtype=np.int32)


class Texts:
    """Stands for data.Corpus: eight chunks of different lengths."""

    def __len__(self) -> int:
        return COUNT

    def chunk(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(1, VOCABULARY, 5 + i).astype(np.int32)


@dataclass
class Tokenizer:
    """As much of a tokenizer as the losses ask for."""

    eos_token_id: int = EOS
    pad_token_id: int = EOS
    all_special_ids: tuple[int, ...] = (EOS, 3)

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(VOCABULARY)}


@dataclass
class OneProcess:
    """As much of an Engine as the losses ask for."""

    engine: torch.nn.Module
    launch: Launch
    world: World = dataclasses.field(default_factory=lambda: World(0, 1, torch.device("cpu")))
    step: int = 0
    mine = Engine.mine

    def whole(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def settings(preset: str, **changes: Any) -> OnPolicy:
    small = {
        "semantics": preset,
        "rollouts": COUNT,
        "batch": COUNT,
        "max_tokens": 12,
        "alpha": 0.3,
        "lm_batch": COUNT,
    }
    return OnPolicy(**(PRESETS[preset] | small | changes))


def pair(family: str = "llama") -> tuple[Any, Any]:
    return make(family, 1).double(), make(family, 2).double()


def rollouts(student: Any, teacher: Any, chosen: OnPolicy, pad: int = EOS) -> Rollouts:
    """Samples of the mixture, not on the student but on an earlier one, so that ratios differ from 1."""
    sampler = chosen.sampler or Sampler()
    found = sample(
        student,
        PROMPTS,
        Prompts.ids,
        Sampling(max_tokens=chosen.max_tokens, top_p=sampler.top_p),
        seed=1,
        step=2,
        ends=[EOS],
        pad=pad,
        vocabulary=VOCABULARY,
        mixture=Mixture(
            teacher, chosen.alpha, teacher_top_k=sampler.teacher_top_k, early_end=sampler.early_end
        ),
        record=True,
    )
    made = together(Prompts(), [Entry(i, r.tokens, r.finished, r.record) for i, r in enumerate(found)], True)
    shift = torch.randn(made.mask.shape, generator=torch.Generator().manual_seed(3)) * 0.3 * made.mask
    made = dataclasses.replace(made, student_logprobs=made.student_logprobs + shift)
    tensors = {name: value.double() for name, value in vars(made).items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(made, **tensors)


def task(teacher: Any, chosen: OnPolicy, pad: int = EOS) -> Task:
    dev = Dev([], [], Tokenizer(pad_token_id=pad), Sampling(), VOCABULARY, 8, 0)
    return Task(teacher, None, Texts(), dev, chosen, 5)


def gradient(
    student: Any,
    made: Rollouts,
    work: Task,
    launch: Launch = WHOLE,
    order: list[int] | None = None,
    target: float | None = None,
) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradient by parameter) of one mini-batch of all rows."""
    student.zero_grad()
    parts, loss = micro_batches(OneProcess(student, launch), work, made, order or list(range(COUNT)), target)
    total = torch.stack([loss(part)[0] for part in parts]).sum()
    total.backward()
    return total.item(), {
        name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None
    }


def engine_of(folder, family, launch, precision="fp32", **more):
    """(engine with the student, teacher, settings) of a run whose steps show the size of a gradient.

    With Adam's usual epsilon a gradient of any size moves a weight by the same amount.
    """
    chosen = settings("released", **{"warmup": 0, "lr": 1e-2, **more})
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    student, teacher = (model.to(dtype) for model in pair(family))
    engine = Engine(student, chosen, launch, start(0), precision, folder, 2)
    for group in engine.engine.optimizer.param_groups:
        group["eps"] = 1.0
    return engine, engine.frozen(teacher), chosen
