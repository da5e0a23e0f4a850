"""Tokens per second of sampling next to transformers' `generate`: same model, rows and lengths."""

from __future__ import annotations

import dataclasses
import statistics

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.gpu_check.result import Result, answer, least
from benchmarks.shapes import Shape
from benchmarks.speed import seconds
from benchmarks.workload import EOS, FIRST, PAD, make_model
from minillm.config.sections import Sampling
from minillm.models.loading import DTYPES
from minillm.runtime.processes import start
from minillm.sampling.sample import Mixture, Response, sample

REPEATS = 3
# Times as many tokens per second. At toy size Python's own time decides.
LEAST = {"cuda": 1.0, "cpu": 0.5}
ALPHA = 0.2


def responses(
    model: PreTrainedModel, shape: Shape, prompts: list[np.ndarray], mixture: Mixture | None = None
) -> list[Response]:
    """Of our own sampling, with records if there is a `mixture`."""
    return sample(
        model,
        prompts,
        range(shape.batch),
        Sampling(max_tokens=shape.response),
        seed=1,
        step=0,
        ends=[EOS],
        pad=PAD,
        vocabulary=shape.vocabulary,
        mixture=mixture,
        record=mixture is not None,
        batch=shape.batch,
    )


def ours(
    model: PreTrainedModel, shape: Shape, prompts: list[np.ndarray], mixture: Mixture | None = None
) -> list[int]:
    """The responses' lengths."""
    return [len(response.tokens) for response in responses(model, shape, prompts, mixture)]


def theirs(model: PreTrainedModel, shape: Shape, prompts: list[np.ndarray]) -> list[int]:
    """The same by `generate`."""
    tokens = torch.from_numpy(np.stack(prompts)).to(model.device)
    made = model.generate(  # type: ignore[operator]
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=True,
        top_k=0,
        min_new_tokens=shape.response,
        max_new_tokens=shape.response,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return [made.shape[1] - shape.prompt] * len(made)


def run(shape: Shape) -> Result:
    device = start(0).device
    student, teacher = (
        nn.Module.to(make_model(size, shape, seed), device, DTYPES["bf16"])
        for seed, size in enumerate((shape.student, shape.teacher), 1)
    )
    draws = np.random.default_rng(0)
    prompts = [draws.integers(FIRST, shape.vocabulary, shape.prompt) for _ in range(shape.batch)]
    ways = {
        "ours": lambda: ours(student, shape, prompts),
        "generate": lambda: theirs(student, shape, prompts),
        "ours, with the teacher": lambda: ours(student, shape, prompts, Mixture(teacher, ALPHA)),
    }
    if any(field.name == "groups" for field in dataclasses.fields(Mixture)):
        coins = {"groups": [0] * shape.batch}
        ways["ours, with the teacher by coins"] = lambda: ours(
            student, shape, prompts, Mixture(teacher, ALPHA, **coins)
        )
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(REPEATS + 1):
        for way, call in ways.items():
            taken, lengths = seconds(call)
            assert lengths == [shape.response] * shape.batch, f"{way}: rows ended before their time"
            # Kernels are chosen in the first turn.
            if turn:
                speeds[way].append(shape.batch * shape.response / taken)
    medians = {way: statistics.median(values) for way, values in speeds.items()}
    limit = least(
        "ours / generate, tokens per second", medians["ours"] / medians["generate"], LEAST[device.type]
    )
    return Result([limit], {f"tokens per second, {way}": value for way, value in medians.items()})


if __name__ == "__main__":
    answer(run)
