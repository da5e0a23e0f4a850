"""Decode against training: log-probabilities of the same tokens under unchanged weights, in bf16.

Sampling computes them token by token with a KV cache, training in one pass with gradients.  The difference is
rounding, which the importance weights take for a change of the policy.  With and without what trained GPT-2
adds to all logits of a token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.gpu_check.result import Result, answer, most
from benchmarks.gpu_check.rollouts import responses
from benchmarks.shapes import Shape, Size
from benchmarks.workload import FIRST, PAD, make_model
from minillm.data.batching import collate
from minillm.models.head import head_of, response_losses, response_tokens, token_logprobs
from minillm.models.loading import DTYPES
from minillm.runtime.processes import start
from minillm.sampling.sample import Mixture

# Of a token's logits in trained GPT-2.
OFFSETS = (0.0, -96.0)
# The presets' clip.
CLIP = 0.2
# Logits rounded at -96 have 0.08 nats and 2.8%.
MOST_DEVIATION, MOST_OUTSIDE = 0.03, 0.001
ALPHA = 0.2


def shifted_model(size: Size, shape: Shape, seed: int, offset: float) -> PreTrainedModel:
    """A random GPT-2 whose logits spread as trained ones do, around `offset`."""
    model: Any = make_model(size, shape, seed)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 5)
    # One feature of the last norm is constant: 8 for every token.
    model.transformer.ln_f.weight.data[0], model.transformer.ln_f.bias.data[0] = 0.0, 8.0
    model.lm_head.weight.data[:, 0] = offset / 8
    model.config.tie_word_embeddings = False
    return model  # type: ignore[no-any-return]


def training_logprobs(
    model: PreTrainedModel, examples: list[tuple[np.ndarray, np.ndarray]], vocabulary: int
) -> Tensor:
    """Log-probabilities of the responses' tokens from passes of training, (tokens,), row after row."""
    device, rows = next(model.parameters()).device, []
    for example in examples:
        batch, parts = collate([example], PAD).to(device), []
        tokens = response_tokens(batch)

        def noted(
            logits: Tensor, tile: slice, tokens: Tensor = tokens, parts: list[Tensor] = parts
        ) -> Tensor:
            values = token_logprobs(logits, tokens[tile])
            parts.append(values.detach())
            return values

        response_losses(model, batch, [(slice(None), noted, head_of(model, vocabulary))])
        rows.append(torch.cat(parts))
    return torch.cat(rows)


def differences(shape: Shape, offset: float, device: torch.device) -> np.ndarray:
    """new - old log-probability of every sampled token, in nats."""
    student, teacher = (
        nn.Module.to(shifted_model(size, shape, seed, offset), device, DTYPES["bf16"])
        for seed, size in enumerate((shape.student, shape.teacher), 1)
    )
    draws = np.random.default_rng(0)
    # Of different lengths: rows have padding.
    prompts = [draws.integers(FIRST, shape.vocabulary, shape.prompt - i % 8) for i in range(shape.batch)]
    found = responses(student, shape, prompts, Mixture(teacher, ALPHA))
    examples = [(prompt, response.tokens) for prompt, response in zip(prompts, found, strict=True)]
    old = np.concatenate([response.record.student_logprobs for response in found if response.record])
    new = training_logprobs(student, examples, shape.vocabulary).double().cpu().numpy()
    values: np.ndarray = new - old
    return values


def run(shape: Shape) -> Result:
    device = start(0).device
    limits, values = [], {}
    for offset in OFFSETS:
        gaps = differences(shape, offset, device)
        outside = float((np.abs(np.exp(gaps) - 1) > CLIP).mean())
        limits += [
            most(f"standard deviation, logits around {offset:g}, nats", gaps.std(), MOST_DEVIATION),
            most(f"share outside of the clip, logits around {offset:g}", outside, MOST_OUTSIDE),
        ]
        values[f"largest difference, logits around {offset:g}, nats"] = float(np.abs(gaps).max())
    return Result(limits, values)


if __name__ == "__main__":
    answer(run)
