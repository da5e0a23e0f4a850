"""Where the time of an iteration goes: by part (model, pass), by kind of operation, and against the roofline.

`python -m benchmarks.breakdown [--precision bf16] [--side ours] [--real]` prints the tables that
docs/performance.md summarises.
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

# Kinds of operations by name, first match wins; self time, so that nothing is counted twice.
KINDS = (
    ("matrix products", r"aten::(mm|addmm|bmm|baddbmm|linear|matmul|_scaled_mm)$|mkldnn|onednn"),
    ("attention", r"scaled_dot_product|flash_attention|efficient_attention"),
    ("softmax, exponentials, logarithms", r"softmax|logsumexp|aten::(exp|log|logaddexp|log1p|xlogy)_?$"),
    ("drawing tokens", r"aten::(cumsum|searchsorted|multinomial|exponential_)$"),
    (
        "copies, casts, gathers",
        r"aten::(copy_|cat|stack|clone|contiguous|_to_copy|index\w*|gather|scatter\w*|fill_|zero_"
        r"|masked_fill_?|where)$|[Mm]emcpy",
    ),
    ("optimizer", r"_foreach|_fused|Optimizer"),
    ("other operations", r"aten::|Backward|autograd"),
    ("Python and the rest", r""),
)


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
        starts: list[float] = []

        def before(*_: Any) -> None:
            synchronize()
            starts.append(time.perf_counter())

        def after(*_: Any) -> None:
            synchronize()
            self.seconds[self.phase, part] += time.perf_counter() - starts.pop()

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
    """Seconds of an iteration, phase -> part -> seconds; "the rest": losses, sampling, records."""
    parts = Parts(side, teacher)
    total = {}
    with parts.watching():
        parts.phase = "rollout"
        total["rollout"], rollouts = seconds(side.rollout)
        parts.phase = "updates"
        total["updates"], _ = seconds(lambda: [side.update(rollouts) for _ in range(inner_epochs)])
    by_phase: dict[str, dict[str, float]] = {phase: {} for phase in total}
    for (phase, part), value in parts.seconds.items():
        by_phase[phase][part] = value
    for phase, value in total.items():
        by_phase[phase]["the rest"] = value - sum(by_phase[phase].values())
    return by_phase


def by_kind(side: Any, inner_epochs: int) -> dict[str, float]:
    """Seconds of an iteration by kind of operation, from torch.profiler (which slows small operations)."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as profiler:
        wall, _ = seconds(lambda: iteration(side, inner_epochs))
    times = dict.fromkeys((name for name, _ in KINDS), 0.0)
    for event in profiler.key_averages():
        cuda = torch.cuda.is_available()
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        kind = next(name for name, pattern in KINDS if re.search(pattern, event.key))
        times[kind] += microseconds * 1e-6
    times["Python and the rest"] += max(0.0, wall - sum(times.values()))
    return times


def executed_flops(action: Callable[[], Any]) -> float:
    """GFLOP of the matrix products and attention that `action` runs."""
    aten = torch.ops.aten
    formulas = {
        # The gradient of the output matrix (tiled_loss.py), of which torch's counter knows only `addmm`.
        aten.addmm_: lambda _, a, b, *__, **___: 2 * a[0] * a[1] * b[1],
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    # Sampling on a CPU uses it (onednn_layout.py).
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        formulas[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: (
            2 * math.prod(x) * weight[0]
        )
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter:
        action()
    return counter.get_total_flops() / 1e9


def iteration(side: Any, inner_epochs: int) -> None:
    rollouts = side.rollout()
    for _ in range(inner_epochs):
        side.update(rollouts)


def utilisation(side: Any, shape: Shape, precision: str, device: torch.device) -> dict[str, float]:
    """An iteration against the machine: its GFLOP, its seconds, and its share of the roofline."""
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
    """Markdown: values and their shares of the sum, largest first."""
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
    args = parser.parse_args()
    shape, world = REAL if args.real else FIXED, start(0)
    setting = Setting(shape, args.precision, world)
    side = SIDES[args.side](setting, shape, setting.make())
    # Warm up.
    side.update(side.rollout())
    parts = by_part(side, setting.teacher, shape.inner_epochs)
    by_name = {f"{phase}: {part}": v for phase, values in parts.items() for part, v in values.items()}
    print(table("part of an iteration", by_name))
    print()
    print(table("kind of operation", by_kind(side, shape.inner_epochs)))
    print()
    for name, value in utilisation(side, shape, args.precision, world.device).items():
        print(f"{name:26} {value:.4g}")


if __name__ == "__main__":
    main()
