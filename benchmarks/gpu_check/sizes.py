"""Sizes of the checks: on a GPU, and those of a rehearsal on a CPU."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes import Shape, Size
from benchmarks.workload import make_model
from minillm.config.launch import Launch

# GPT-2's small and medium sizes: a GPU of 16 GB holds them.
GPU = Shape(
    batch=32, micro_batch=8, prompt=128, response=128, text=256, student=Size(12, 768), teacher=Size(24, 1024)
)
TOY = Shape(
    vocabulary=500, batch=8, micro_batch=4, prompt=12, response=12, text=24, student=Size(1, 64),
    teacher=Size(2, 64),
)  # fmt: skip


def launch(shape: Shape, **changes: Any) -> Launch:
    """Launch values of a check."""
    return Launch(**({"zero": 1, "micro_batch": shape.micro_batch, "eval_batch": shape.batch} | changes))


def student(shape: Shape) -> Any:
    """The student with its first weights."""
    return make_model(shape.student, shape, 1)
