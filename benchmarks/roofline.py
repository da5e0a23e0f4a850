"""What the machine can do, by its fastest measured matrix products, and what an iteration needs at least."""

from __future__ import annotations

import time

import torch

from benchmarks.shapes import Shape, Size
from benchmarks.speed import synchronize
from minillm.models.loading import DTYPES

# (rows, inner, columns): large squares, and the two most frequent kinds of product in training.
PRODUCTS = ((2048, 2048, 2048), (4096, 1024, 4096), (2048, 256, 50257), (2048, 384, 1536))


def roofline(precision: str, device: torch.device, repeats: int = 5) -> dict[str, float]:
    """GFLOP/s of each product, best of `repeats`, and the best of all ("roofline")."""
    speeds = {}
    for rows, inner, columns in PRODUCTS:
        a = torch.randn(rows, inner, device=device).to(DTYPES[precision])
        b = torch.randn(columns, inner, device=device).to(DTYPES[precision])
        times = []
        for _ in range(repeats + 1):
            synchronize()
            begin = time.perf_counter()
            torch.nn.functional.linear(a, b)
            synchronize()
            times.append(time.perf_counter() - begin)
        speeds[f"{rows} x {inner} x {columns}"] = 2e-9 * rows * inner * columns / min(times[1:])
    return speeds | {"roofline": max(speeds.values())}


def decoder_flops(size: Size, tokens: float, context: float) -> float:
    """One forward pass of the blocks over `tokens` that attend to `context` tokens on average (products)."""
    return size.layers * tokens * (2 * 12 * size.width**2 + 4 * size.width * context)


def head_flops(size: Size, vocabulary: int, tokens: float) -> float:
    """One product of `tokens` hidden states with the output matrix."""
    return 2.0 * size.width * vocabulary * tokens


def needed_flops(shape: Shape, pairs: list[tuple[int, int]], text: bool = True) -> dict[str, float]:
    """GFLOP that one iteration cannot do without; `pairs` are the (prompt, response) tokens of its rows.

    Rollout: each token once through both decoders, each response position once through both output matrices.
    Update: forward and backward (twice a forward) of the student on valid tokens, with the output matrix on
    response tokens; of the teacher only the output matrix, since the rollout has its hidden states.  On plain
    text, which is new each time, the whole teacher.
    """
    student, teacher, v = shape.student, shape.teacher, shape.vocabulary
    tokens = sum(p + r - 1 for p, r in pairs)
    context = sum((p + r - 1) ** 2 / 2 for p, r in pairs) / tokens
    responses = sum(r for _, r in pairs)
    rollout = sum(decoder_flops(m, tokens, context) + head_flops(m, v, responses) for m in (student, teacher))
    update = 3 * (decoder_flops(student, tokens, context) + head_flops(student, v, responses)) + head_flops(
        teacher, v, responses
    )
    if text:
        count = shape.batch * shape.text
        read = [decoder_flops(m, count, shape.text / 2) + head_flops(m, v, count) for m in (student, teacher)]
        update += 3 * read[0] + read[1]
    total = rollout + shape.inner_epochs * update
    return {"rollout": rollout / 1e9, "update": update / 1e9, "iteration": total / 1e9}
