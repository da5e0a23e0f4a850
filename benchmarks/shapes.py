"""What is measured: sizes of models, batches and texts, and the lengths of real prompts and responses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Size:
    """A GPT-2 of `layers` blocks with `width` features; heads have 64 features."""

    layers: int
    width: int


@dataclass(frozen=True)
class Shape:
    """One workload.

    A collection's `batch` rollouts are one mini-batch per inner epoch.  Prompts have `prompt` tokens,
    responses `response` tokens and no EOS; with `real` their lengths are drawn from Dolly's, and the
    reference pads them to `prompt` and `response`, as the released code does.  There are as many chunks of
    plain text as rollouts, of `text` tokens each.
    """

    vocabulary: int = 50257
    batch: int = 16
    micro_batch: int = 16
    prompt: int = 64
    response: int = 64
    text: int = 128
    inner_epochs: int = 4
    real: bool = False
    student: Size = Size(4, 256)
    teacher: Size = Size(6, 384)

    @property
    def width(self) -> int:
        """Positions of a padded row."""
        return self.prompt + self.response


FIXED = Shape()
# The released plain text is packed into chunks of 512 tokens.  The logits of 16 + 16 rows of 512 tokens do
# not fit into 24 GB for the reference: 8 rows at a time, the pipeline's default.
REAL = Shape(micro_batch=8, prompt=256, response=256, text=512, real=True)

# What --large replaces both models with: GPT-2 medium and XL, for a GPU.
LARGE = {"student": Size(24, 1024), "teacher": Size(48, 1600)}

# GPT-2 tokens at the quantiles 0, 5, ... 100% of databricks-dolly-15k as the pipeline reads it: 2,492 rows of
# a published filtered list (AlpaGasus') whose prompt, in the published template, has at most 256 tokens;
# responses with their EOS, cut at 256.  Means: 57.9 and 71.1.  `python -m benchmarks.lengths FOLDER` prints
# these lines.
PROMPTS = (34, 35, 36, 37, 38, 39, 39, 40, 41, 42, 43, 44, 45, 47, 49, 54, 60, 68, 95, 165, 256)
RESPONSES = (2, 9, 12, 14, 18, 23, 28, 31, 36, 40, 47, 55, 62, 71, 82, 93, 108, 134, 179, 256, 256)


def real_lengths(rows: int, limits: tuple[int, int], seed: int) -> tuple[list[int], list[int]]:
    """Lengths of `rows` prompts, all different, and of their responses, in tokens.

    One draw from each of `rows` equal slices of the distribution, so that a small batch is spread like the
    whole set; responses are paired with prompts at random.
    """
    generator = np.random.default_rng(seed)
    places = np.linspace(0, 1, len(PROMPTS))

    def draw(quantiles: tuple[int, ...], limit: int) -> list[int]:
        at = (np.arange(rows) + generator.random(rows)) / rows
        return [min(limit, round(float(value))) for value in np.interp(at, places, quantiles)]

    prompts = draw(PROMPTS, limits[0])
    for i in range(1, rows):
        prompts[i] = max(prompts[i], prompts[i - 1] + 1)
    overrun = max(0, prompts[-1] - limits[0])
    return [n - overrun for n in prompts], [int(n) for n in generator.permutation(draw(RESPONSES, limits[1]))]
