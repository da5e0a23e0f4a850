"""Parts of on-policy methods against plain reverse KL: `python -m benchmarks.parts [--only NAME ...]`.

Each part is one process.  An update is taken on one collection of the student's own samples, all rows in one
micro-batch, without plain text: its response tokens per second (median of some updates after one that is not
counted), and the peak of its memory above what is held before it.  "logits" is what one tensor of all logits
in float32 would take.  Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

from benchmarks import child
from benchmarks.meter import MB, Meter
from benchmarks.shapes import FIXED, LARGE, Shape
from benchmarks.sides import Ours
from benchmarks.workload import Setting
from minillm.config.objective_parts import AlphaBeta, Assistant, Signal, Taid, Term, TokenWeights
from minillm.runtime.processes import start
from minillm.training.rollout_losses import micro_batches

PLAIN = "reverse KL"
# Name -> keys of OnPolicy, other than those of PLAIN.
PARTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "reverse KL, with its gradient's variance": {},
    "forward KL": {"objective": "forward_kl"},
    "student's top 16": {"signal": Signal(tokens="student_topk", top_k=16)},
    "teacher's top 32, renormalised": {"signal": Signal(tokens="teacher_topk", top_k=32, renormalise=True)},
    "union of the top 16": {"signal": Signal(tokens="union", top_k=16)},
    "intersection of the top 16": {"signal": Signal(tokens="intersection", top_k=16)},
    "sampled token": {"objective": "squared_log_ratio", "signal": Signal(tokens="sampled")},
    "alpha-beta": {"objective": "alpha_beta", "alpha_beta": AlphaBeta()},
    "token-wise KL": {"objective": "token_wise_kl"},
    "moving target": {"objective": "forward_kl", "taid": Taid()},
    "assistant": {"assistant": Assistant(alpha=0.0)},
    "token weights": {"token_weights": TokenWeights(prefix_discrepancy=0.5)},
    "forward KL in addition": {
        "also": (Term(objective="forward_kl", signal=Signal(tokens="teacher_topk", top_k=16)),)
    },
}
UPDATES = 5


def run(part: str, shape: Shape, precision: str = "fp32", updates: int = UPDATES) -> dict[str, float]:
    """Response tokens per second, and MB of an update above what is held before it."""
    meter, setting = Meter(), Setting(shape, precision, start(0))
    keys = {"objective": "reverse_kl", "alpha": 0.0, "lm_coef": 0.0} | PARTS[part]
    ours = Ours(setting, shape, setting.make(), **keys)
    varied = part.endswith("variance")
    ours.engine.launch = dataclasses.replace(
        ours.engine.launch, gradient_variance=varied, log_every=1, micro_batch=shape.batch // (1 + varied)
    )
    rollouts = ours.rollout()
    rows, seconds, peak = list(range(shape.batch)), [], 0.0
    for step in range(1 + updates):
        held = meter.held()
        meter.begin()
        begin = time.perf_counter()
        parts, loss = micro_batches(ours.engine, ours.task, rollouts, rows, 0.5 if ours.chosen.taid else None)
        ours.engine.summed(ours.engine.update(parts, loss, sizes=list(map(len, parts))))
        if step:
            seconds.append(time.perf_counter() - begin)
            peak = max(peak, meter.peak() - held)
    return {"speed": ours.tokens(rollouts) / statistics.median(seconds), "memory": peak}


def table(shape: Shape, results: dict[str, dict[str, float]]) -> str:
    """Markdown, a line for each part."""
    plain = results[PLAIN]
    logits = shape.batch * shape.response * shape.vocabulary * 4 / MB
    lines = [
        f"{shape.batch} rows of {shape.prompt} + {shape.response} tokens, vocabulary {shape.vocabulary}; "
        f"logits: {logits:.0f} MB",
        "",
        "| part | tokens/s | of plain reverse KL | MB of an update | more than plain |",
        "|:--|--:|--:|--:|--:|",
    ]
    for part, found in results.items():
        share, more = found["speed"] / plain["speed"], found["memory"] - plain["memory"]
        lines.append(f"| {part} | {found['speed']:.0f} | {share:.2f} | {found['memory']:.0f} | {more:+.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS), metavar="NAME")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--vocabulary", type=int, default=FIXED.vocabulary)
    parser.add_argument("--large", action="store_true", help="GPT-2 medium and XL, for a GPU")
    given = parser.parse_args()
    sizes: dict[str, Any] = LARGE if given.large else {}
    shape = dataclasses.replace(FIXED, vocabulary=given.vocabulary, **sizes)
    results = {}
    for part in dict.fromkeys([PLAIN, *given.only]):
        results[part] = child.ask("benchmarks.parts", shape, part=part, precision=given.precision)
        print(part, json.dumps(results[part]), flush=True)
    print("\n" + table(shape, results))


if __name__ == "__main__":
    import sys

    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        asked_shape, request = child.asked()
        print(json.dumps(run(shape=asked_shape, **request)))
    else:
        main()
