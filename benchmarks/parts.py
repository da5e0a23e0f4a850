"""Parts of on-policy methods against plain reverse KL: `python -m benchmarks.parts [--only NAME ...]`.

Each part is one process.  An update is taken on one collection of the student's own samples, all rows in one
micro-batch, without plain text: its response tokens per second (median of some updates after one that is not
counted), the peak of its memory above what is held before it, and what is held.  Gold answers and the
teacher's texts are further rows, as long as the samples, whose tokens are not counted; another prompt is
longer by a gold answer.  "logits" is what one tensor of all logits in float32 would take.

Then samplers: response tokens per second of a collection, with the teacher's hidden states of all its tokens,
which an update needs; the median of some after one that is not counted.  No response ends early: these models
never draw the EOS, and responses are shorter than the default of early ends.

All of it takes about ten minutes on two cores.  Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from benchmarks import child
from benchmarks.meter import MB, Meter
from benchmarks.shapes import FIXED, LARGE, Shape, Size
from benchmarks.sides import Ours
from benchmarks.workload import EOS, Setting, make_model
from minillm.config.objective_parts import (
    AlphaBeta,
    Assistant,
    Signal,
    Taid,
    TeacherTexts,
    Term,
    TokenWeights,
)
from minillm.config.sampler import EarlyEnd, Sampler
from minillm.config.teaching import Gold, Teaching
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.models.loading import DTYPES
from minillm.runtime.processes import start
from minillm.training.mini_batch import Task
from minillm.training.rollout_losses import micro_batches
from minillm.training.teaching import MeanTeacher

PLAIN, PLAINLY = "reverse KL", "student"
# Keys of OnPolicy that every part replaces or keeps.
BASE: dict[str, Any] = {"objective": "reverse_kl", "alpha": 0.0, "lm_coef": 0.0}
CENTRED = {
    "objective": "minillm",
    "advantage": "centred",
    "single_step": False,
    "whiten": "none",
    "length_norm": False,
}
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
    "teacher's likeliest token in addition": {"also": (Term(objective="teacher_token"),)},
    "gold answers in addition": {"gold": Gold()},
    "teacher's texts in addition": {"objective": "skew_reverse_kl", "teacher_texts": TeacherTexts()},
    "target beyond the teacher": {"extrapolate": 1.25},
    "policy gradient, whole baseline": CENTRED,
    "policy gradient, baseline of the top 100": CENTRED | {"baseline_top_k": 100},
    "teacher, another prompt": {"teacher": Teaching(prompt="demonstration")},
    "initial student, another prompt": {"teacher": Teaching(who="initial", prompt="demonstration")},
    "student itself, another prompt": {"teacher": Teaching(who="self", prompt="demonstration")},
    "mean of the student, another prompt": {"teacher": Teaching(who="ema", prompt="demonstration")},
}
# The same for collections.
SAMPLERS: dict[str, dict[str, Any]] = {
    PLAINLY: {},
    "mixed with the teacher, alpha 0.2": {"alpha": 0.2},
    "teacher's top 25 (SKD)": {"sampler": Sampler(teacher_top_k=25)},
    "early ends": {"sampler": Sampler(early_end=EarlyEnd())},
    "top-p 0.9": {"sampler": Sampler(top_p=0.9)},
}
UPDATES = COLLECTIONS = 3
TINY = Shape(vocabulary=37, batch=4, prompt=6, response=8, text=10, student=Size(1, 16), teacher=Size(1, 32))


def taught(ours: Ours, setting: Setting, shape: Shape) -> Task:
    """The task with the models and texts that its settings ask for; gold answers stand for the teacher's."""
    chosen, task, rows = ours.chosen, ours.task, ours.data.rows
    gold = {int(id_): rows.response(i) for i, id_ in enumerate(rows.ids)}

    def initial() -> PreTrainedModel:
        model = nn.Module.to(
            make_model(shape.student, shape, 1), setting.world.device, DTYPES[setting.precision]
        )
        return ours.engine.frozen(model)

    if chosen.teacher_texts is not None:
        task = dataclasses.replace(task, answers=gold)
    if chosen.anchored:
        task = dataclasses.replace(task, anchor=initial())
    if chosen.teacher is None:
        return task
    who = chosen.teacher.who
    teacher = task.teacher if who == "pair" else ours.engine.model if who == "self" else initial()
    shown = {int(id_): np.concatenate([rows.prompt(i), gold[int(id_)]]) for i, id_ in enumerate(rows.ids)}
    dev = dataclasses.replace(task.dev, teacher=TeacherPrompts({"train": shown}, (EOS, EOS)))
    return dataclasses.replace(task, teacher=teacher, dev=dev, pair=(task.teacher, None))


def made(shape: Shape, precision: str, keys: dict[str, Any]) -> Ours:
    """The package with these keys; its models have room for a prompt that shows a gold answer."""
    shape = dataclasses.replace(shape, text=max(shape.text, shape.prompt + 2 * shape.response))
    setting = Setting(shape, precision, start(0))
    ours = Ours(setting, shape, setting.make(), **(BASE | keys))
    ours.task = taught(ours, setting, shape)
    return ours


def run(part: str, shape: Shape, precision: str = "fp32", updates: int = UPDATES) -> dict[str, float]:
    """Response tokens per second, and MB: of an update above what is held before it, and what is held."""
    meter, ours = Meter(), made(shape, precision, PARTS[part])
    chosen, varied = ours.chosen, part.endswith("variance")
    rows = shape.batch * (1 + (chosen.gold is not None) + (chosen.teacher_texts is not None))
    ours.engine.launch = dataclasses.replace(
        ours.engine.launch, gradient_variance=varied, log_every=1, micro_batch=rows // (1 + varied),
        micro_tokens=0,
    )  # fmt: skip
    rollouts = ours.rollout()
    mean = MeanTeacher.of(chosen, ours.task.teacher, ours.engine.model, None)
    every, seconds, peak, held = list(range(shape.batch)), [], 0.0, 0.0
    for step in range(1 + updates):
        held = meter.held()
        meter.begin()
        begin = time.perf_counter()
        parts, loss = micro_batches(ours.engine, ours.task, rollouts, every, 0.5 if chosen.taid else None)
        ours.engine.summed(ours.engine.update(parts, loss, sizes=list(map(len, parts))))
        if mean is not None:
            mean.move()
        if step:
            seconds.append(time.perf_counter() - begin)
            peak = max(peak, meter.peak() - held)
    return {"speed": ours.tokens(rollouts) / statistics.median(seconds), "memory": peak, "held": held}


def collect(
    sampler: str, shape: Shape, precision: str = "fp32", updates: int = COLLECTIONS
) -> dict[str, float]:
    """Response tokens per second of a collection; `updates`: how many are counted."""
    ours, speeds = made(shape, precision, SAMPLERS[sampler]), []
    for step in range(1 + updates):
        begin = time.perf_counter()
        rollouts = ours.rollout()
        if step:
            speeds.append(ours.tokens(rollouts) / (time.perf_counter() - begin))
    return {"speed": statistics.median(speeds)}


def table(shape: Shape, results: dict[str, dict[str, float]]) -> str:
    """Markdown, a line for each part."""
    plain = results[PLAIN]
    logits = shape.batch * shape.response * shape.vocabulary * 4 / MB
    lines = [
        f"{shape.batch} rows of {shape.prompt} + {shape.response} tokens, vocabulary {shape.vocabulary}; "
        f"logits: {logits:.0f} MB",
        "",
        "| part | tokens/s | of plain reverse KL | MB of an update | more than plain | more held |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for part, found in results.items():
        share = found["speed"] / plain["speed"]
        more, held = (found[key] - plain[key] for key in ("memory", "held"))
        cells = [part, f"{found['speed']:.0f}", f"{share:.2f}", f"{found['memory']:.0f}", f"{more:+.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{held:+.0f}'])} |")
    return "\n".join(lines)


def table_of_samplers(results: dict[str, dict[str, float]]) -> str:
    """Markdown, a line for each sampler."""
    lines = ["| sampler | tokens/s of a collection | of plain sampling |", "|:--|--:|--:|"]
    for sampler, found in results.items():
        share = found["speed"] / results[PLAINLY]["speed"]
        lines.append(f"| {sampler} | {found['speed']:.0f} | {share:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = [*PARTS, *SAMPLERS]
    parser.add_argument("--only", nargs="*", default=every, choices=every, metavar="NAME")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--updates", type=int, default=UPDATES, help="updates and collections that count")
    parser.add_argument("--large", action="store_true", help="GPT-2 medium and XL, for a GPU")
    parser.add_argument("--tiny", action="store_true", help="tiny models and vocabulary: a rehearsal")
    given = parser.parse_args()
    sizes: dict[str, Any] = LARGE if given.large else {}
    shape = dataclasses.replace(TINY if given.tiny else FIXED, **sizes)
    if given.vocabulary:
        shape = dataclasses.replace(shape, vocabulary=given.vocabulary)
    how = {"precision": given.precision, "updates": given.updates}
    texts = []
    for kind, first, names in (("part", PLAIN, PARTS), ("sampler", PLAINLY, SAMPLERS)):
        asked = [name for name in names if name in given.only]
        results = {}
        for name in dict.fromkeys([first, *asked] if asked else []):
            results[name] = child.ask("benchmarks.parts", shape, **{kind: name}, **how)
            print(name, json.dumps(results[name]), flush=True)
        if results:
            texts.append(table(shape, results) if kind == "part" else table_of_samplers(results))
    print("\n" + "\n\n".join(texts))


if __name__ == "__main__":
    import sys

    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        asked_shape, request = child.asked()
        measure: Any = collect if "sampler" in request else run
        print(json.dumps(measure(shape=asked_shape, **request)))
    else:
        main()
