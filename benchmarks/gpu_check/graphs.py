"""Sampling captured as a graph and not: the same tokens, and what it saves."""

from __future__ import annotations

import dataclasses
import warnings

from benchmarks.gpu_check.result import Result, answer, least
from benchmarks.gpu_check.training import Runs
from benchmarks.shapes import Shape
from benchmarks.speed import seconds
from minillm.config.launch import Launch

LEAST = 0.9


def run(shape: Shape) -> Result:
    names = [field.name for field in dataclasses.fields(Launch) if "graph" in field.name]
    if not names:
        return Result(skipped="this version captures no graphs")
    runs, responses, times = Runs(shape, "bf16"), {}, {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for captured in (False, True):
            side = runs.side(f"graphs-{captured}", **{names[0]: captured})
            # Kernels are chosen in the first.
            side.rollout()
            side.collection = 0
            times[captured], made = seconds(side.rollout)
            responses[captured] = [response.tolist() for response in made.responses]
    failed = [str(warning.message) for warning in seen if "cuda_graphs" in str(warning.message)]
    same = [a == b for a, b in zip(responses[True], responses[False], strict=True)]
    values = {f"seconds of a collection, {names[0]} {name}": value for name, value in times.items()}
    why = f" ({failed[0]})" if failed else ""
    limits = [
        least("share of equal responses", sum(same) / len(same), LEAST),
        least(f"1 if steps were captured{why}", float(not failed), 1),
    ]
    return Result(limits, values)


if __name__ == "__main__":
    answer(run)
