"""Where the time of one iteration goes: by part (which model, which pass), by kind of operation, and against the roofline.

`python -m benchmarks.breakdown [--precision bf16] [--side ours] [--real]` prints the tables; docs/performance.md sums them up.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.roofline import needed_flops, roofline
from benchmarks.shapes import FIXED, REAL, Shape
from benchmarks.sides import SIDES
from benchmarks.speed import seconds, synchronize
from benchmarks.workload import Setting
from minillm.runtime.processes import start

# Kinds of operations by name, the first that matches; self time, so that nothing is counted twice.
KINDS = (
    ("matrix products", r"aten::(mm|addmm|bmm|baddbmm|linear|matmul|_scaled_mm)$|mkldnn|onednn"),
    ("attention", r"scaled_dot_product|flash_attention|efficient_attention"),
    ("softmax, exponentials, logarithms", r"softmax|logsumexp|aten::(exp|log|logaddexp|log1p|xlogy)_?$"),
    ("drawing tokens", r"aten::(cumsum|searchsorted|multinomial|exponential_)$"),
    (
        "copies, casts, gathers",
        r"aten::(copy_|cat|stack|clone|contiguous|_to_copy|index\w*|gather|scatter\w*|fill_|zero_|masked_fill_?|where)$|[Mm]emcpy",
    ),
    ("optimizer", r"_foreach|_fused|Optimizer"),
    ("other operations", r"aten::|Backward|autograd"),
    ("Python and the rest", r""),
)  # fmt: skip


class Parts:
    """Wall seconds by part, from hooks on modules and around DeepSpeed's backward pass and step."""

    def __init__(self, side: Any, teacher: Any) -> None:
        self.side, self.teacher, self.phase = side, teacher, ""
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        handles: list[Any] = []
        for name, model in (("student", self.side.engine.model), ("teacher", self.teacher)):
            for part, module in (
                ("blocks", model.base_model),
                ("output matrix", model.get_output_embeddings()),
            ):
                handles += self._time(module, f"{name}, {part}")
        engine = self.side.engine.engine
        for name, part in (("backward", "backward pass"), ("step", "optimizer")):
            setattr(engine, name, self._timed(getattr(engine, name), part))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            del engine.backward, engine.step

    def _time(self, module: torch.nn.Module, part: str) -> list[Any]:
        begun: list[float] = []

        def before(*_: Any) -> None:
            synchronize()
            begun.append(time.perf_counter())

        def after(*_: Any) -> None:
            synchronize()
            self.seconds[self.phase, part] += time.perf_counter() - begun.pop()

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def _timed(self, action: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            begin = time.perf_counter()
            result = action(*args, **kwargs)
            synchronize()
            self.seconds[self.phase, part] += time.perf_counter() - begin
            return result

        return timed


def by_part(side: Any, teacher: Any, inner_epochs: int) -> dict[str, dict[str, float]]:
    """Seconds of one iteration: phase -> part -> seconds; "the rest" is what lies in no part (losses, sampling, records)."""
    parts = Parts(side, teacher)
    total = {}
    with parts.watching():
        parts.phase = "rollout"
        total["rollout"], made = seconds(side.rollout)
        parts.phase = "updates"
        total["updates"], _ = seconds(lambda: [side.update(made) for _ in range(inner_epochs)])
    found: dict[str, dict[str, float]] = {phase: {} for phase in total}
    for (phase, part), value in parts.seconds.items():
        found[phase][part] = value
    for phase, value in total.items():
        found[phase]["the rest"] = value - sum(found[phase].values())
    return found


def by_kind(side: Any, inner_epochs: int) -> dict[str, float]:
    """Seconds of one iteration by kind of operation, from torch.profiler (which slows small operations down)."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as profiler:
        wall, _ = seconds(lambda: iteration(side, inner_epochs))
    found = dict.fromkeys((name for name, _ in KINDS), 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        found[next(name for name, pattern in KINDS if re.search(pattern, event.key))] += own * 1e-6
    found["Python and the rest"] += max(0.0, wall - sum(found.values()))
    return found


def executed_flops(action: Callable[[], Any]) -> float:
    """GFLOP of the matrix products and attention that `action` runs."""
    aten = torch.ops.aten
    more = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # of sampling on a CPU (onednn_layout.py)
        more[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]
    counter = FlopCounterMode(display=False, custom_mapping=more)
    with counter:
        action()
    return counter.get_total_flops() / 1e9


def iteration(side: Any, inner_epochs: int) -> None:
    made = side.rollout()
    for _ in range(inner_epochs):
        side.update(made)


def utilisation(side: Any, shape: Shape, precision: str, device: torch.device) -> dict[str, float]:
    """An iteration against the machine: its GFLOP, its seconds, and what share of the roofline that is."""
    peak = roofline(precision, device)["roofline"]
    pairs = [(len(p), r) for p, r in zip(*sampled(side), strict=True)]
    needed = needed_flops(shape, pairs)["iteration"]
    executed = executed_flops(lambda: iteration(side, shape.inner_epochs))
    wall, _ = seconds(lambda: iteration(side, shape.inner_epochs))
    kinds = by_kind(side, shape.inner_epochs)
    products = kinds["matrix products"] + kinds["attention"]
    return {
        "roofline_gflops": peak,
        "needed_gflop": needed,
        "executed_gflop": executed,
        "seconds": wall,
        "needed_of_roofline": needed / wall / peak,
        "executed_of_roofline": executed / wall / peak,
        "products_share_of_time": products / sum(kinds.values()),
    }


def sampled(side: Any) -> tuple[list[Any], list[int]]:
    """(prompts, response lengths) of a collection."""
    rows = side.data.rows
    prompts = [rows.prompt(i) for i in range(len(rows))]
    return prompts, [side.data.stops.get(len(prompt), side.chosen.max_tokens) for prompt in prompts]


def table(title: str, values: dict[str, float], unit: str = "s") -> str:
    """Markdown: value and share of the sum, the largest first."""
    total = sum(values.values())
    rows = sorted(values.items(), key=lambda item: -item[1])
    lines = [f"| {title} | {unit} | share |", "|:--|--:|--:|"]
    lines += [f"| {name} | {value:.2f} | {100 * value / total:.0f}% |" for name, value in rows if value > 0]
    return "\n".join([*lines, f"| all | {total:.2f} | 100% |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--side", default="ours", choices=tuple(SIDES))
    parser.add_argument("--real", action="store_true", help="real lengths instead of 64 + 64")
    asked = parser.parse_args()
    shape, world = REAL if asked.real else FIXED, start(0)
    setting = Setting(shape, asked.precision, world)
    side = SIDES[asked.side](setting, shape, setting.make())
    side.update(side.rollout())  # warm
    parts = by_part(side, setting.teacher, shape.inner_epochs)
    print(
        table(
            "part of an iteration",
            {f"{phase}: {part}": v for phase, found in parts.items() for part, v in found.items()},
        )
    )
    print()
    print(table("kind of operation", by_kind(side, shape.inner_epochs)))
    print()
    for name, value in utilisation(side, shape, asked.precision, world.device).items():
        print(f"{name:26} {value:.4g}")


if __name__ == "__main__":
    main()
