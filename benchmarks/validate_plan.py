"""What a plan says of small runs against what they take: `python -m benchmarks.validate_plan`.

Each run is a process of its own: models, DeepSpeed's engine, rounds of sampling and updates.  Measured are
the bytes of tensors at the largest moment of the second round (minillm/fits/tensor_bytes.py), without
DeepSpeed's two buckets, which no setting here changes and which would hide all else; and of a third round the
operations that the benchmark's counter sees.  docs/scale.md has the table.  Exit status 1 if the bytes of a
run are off by more than 15%, or its operations by more than 5%.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import child
from benchmarks.breakdown import executed_flops
from benchmarks.shapes import Shape, Size
from benchmarks.sides import Ours
from benchmarks.workload import EOS, Setting, make_model, settings
from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Sampling, Training
from minillm.files import write_json
from minillm.fits import flops
from minillm.fits.memory import BUCKET, memory
from minillm.fits.passes import Loss
from minillm.fits.sizes import size_of, text_of
from minillm.fits.tensor_bytes import TensorBytes
from minillm.fits.work import Draw, Part, Work
from minillm.runtime.engine import Engine
from minillm.runtime.processes import start
from minillm.training.dev_set import Dev, answer
from minillm.training.supervised import Supervision

LIMITS = {"memory": 0.15, "flops": 0.05}
# Stage, precision, shape, and launch values that differ.
SMALL, MIDDLE, LARGE = Size(4, 256), Size(6, 512), Size(8, 640)
RUNS: dict[str, tuple[str, str, Shape, dict[str, Any]]] = {
    "sft, tiny": ("sft", "fp32", Shape(4096, 8, 4, 32, 32, student=Size(2, 128)), {}),
    "sft, recomputed": (
        "sft",
        "bf16",
        Shape(16384, 8, 4, 64, 64, student=Size(6, 384)),
        {"gradient_checkpointing": True},
    ),
    "sft, ZeRO 2": ("sft", "bf16", Shape(32768, 4, 2, 32, 32, student=MIDDLE), {"zero": 2}),
    "kd": ("kd", "fp32", Shape(8192, 8, 4, 64, 64, student=SMALL, teacher=MIDDLE), {}),
    "kd, wide": ("kd", "bf16", Shape(16384, 4, 4, 128, 128, student=SMALL, teacher=Size(6, 384)), {}),
    "minillm, tiny": (
        "minillm",
        "fp32",
        Shape(4096, 8, 4, 32, 32, 64, student=Size(2, 128), teacher=SMALL),
        {},
    ),
    "minillm": ("minillm", "bf16", Shape(16384, 8, 4, 32, 32, 64), {}),
    "minillm, ZeRO 2": (
        "minillm",
        "bf16",
        Shape(32768, 4, 2, 32, 32, 64, student=MIDDLE, teacher=LARGE),
        {"zero": 2},
    ),
    # Written after the last change of a rule, and run once.
    "sft, long, held out": ("sft", "bf16", Shape(9001, 6, 3, 96, 160, student=Size(5, 320)), {}),
    "kd, ZeRO 2, held out": (
        "kd",
        "bf16",
        Shape(20000, 8, 4, 48, 80, student=Size(3, 448), teacher=Size(7, 576)),
        {"zero": 2, "gradient_checkpointing": True},
    ),
    "minillm, held out": (
        "minillm",
        "fp32",
        Shape(12345, 12, 4, 40, 56, 96, student=Size(5, 192), teacher=Size(9, 448)),
        {},
    ),
}
BUCKETS = (2 * BUCKET, 4 * BUCKET)


class Supervised:
    """Updates of SFT or KD on rows of random tokens, and answers to the same prompts."""

    def __init__(self, setting: Setting, shape: Shape, stage: str, launch: dict[str, Any]) -> None:
        data, kd = setting.make(), stage == "kd"
        training = Training(lr=1e-5, epochs=1, batch=shape.batch, loss="kd" if kd else "ce", dropout=False)
        engine = Engine(
            make_model(shape.student, shape, 1),
            training,
            launched(shape, launch),
            setting.world,
            setting.precision,
            setting.folder / "supervised",
            100,
        )
        if kd:
            engine.frozen(setting.teacher)
        examples = [(data.rows.prompt(i), data.rows.response(i)) for i in range(shape.batch)]
        records = [{"id": i, "references": [""]} for i in range(shape.batch)]
        sampling = Sampling(max_tokens=shape.response)
        self.dev = Dev(examples, records, data.tokenizer, sampling, shape.vocabulary, max(32, shape.batch), 0)
        teacher = setting.teacher if kd else None
        self.engine, self.rows = engine, list(range(shape.batch))
        self.work = Supervision(engine, examples, self.dev, [], teacher, 0.5 if kd else 0.0, None)

    def round(self) -> None:
        self.engine.update(*self.work.micro_batches(self.rows))
        answer(self.engine.model, self.dev, self.engine.world)


class OnPolicyRound:
    """A collection of samples, and one update on them."""

    def __init__(self, setting: Setting, shape: Shape, launch: dict[str, Any]) -> None:
        chosen = on_policy(shape)
        engine = Engine(
            make_model(shape.student, shape, 1),
            chosen,
            launched(shape, launch),
            setting.world,
            setting.precision,
            setting.folder / "onpolicy",
            100,
        )
        engine.frozen(setting.teacher)
        self.side = Ours(setting, shape, setting.make(), engine)

    def round(self) -> None:
        self.side.update(self.side.rollout())


def launched(shape: Shape, changes: dict[str, Any]) -> Launch:
    return Launch(micro_batch=shape.micro_batch, eval_batch=max(32, shape.batch), **changes)


def on_policy(shape: Shape) -> OnPolicy:
    """The settings that benchmarks.sides.Ours takes for this shape."""
    return settings(shape)


def planned(stage: str, precision: str, shape: Shape, changes: dict[str, Any]) -> Work:
    """The same run as a plan sees it, from shapes only: one step, one round of sampling."""
    student, teacher = (size_of(text_of(gpt2(size, shape))) for size in (shape.student, shape.teacher))
    rows, prompt, response = shape.batch, shape.prompt, shape.response
    common: dict[str, Any] = {"precision": precision, "launch": launched(shape, changes), "steps": 1}
    prompts = {"rows": rows, "times": 1, "prompt": prompt, "response": response, "longest": prompt}
    if stage == "minillm":
        chosen = on_policy(shape)
        samples = Part(rows, prompt, response, shape.width, response, Loss(teacher, 0, chosen), scored=True)
        ratio = chosen.lm_kd_ratio
        loss = Loss(teacher if ratio else None, ratio)
        texts = Part(rows, 1, shape.text - 1, shape.text, shape.text - 1, loss, float(ratio > 0), ratio > 0)
        draw = Draw((student, teacher), **prompts, horizon=response, alpha=chosen.alpha, record=True)
        return Work(
            stage, student, (teacher,), **common, batch=2 * rows, parts=(samples, texts), draws=(draw,),
            kept=rows * response,
        )  # fmt: skip
    kd = stage == "kd"
    loss = Loss(teacher, 0.5) if kd else Loss()
    part = Part(rows, prompt, response, shape.width, response, loss, float(kd), kd)
    draw = Draw((student,), **prompts, horizon=response)
    frozen = (teacher,) if kd else ()
    return Work(stage, student, frozen, **common, batch=rows, parts=(part,), draws=(draw,))


def gpt2(size: Size, shape: Shape) -> dict[str, Any]:
    """The shape of benchmarks.workload.make_model's models."""
    return {
        "model_type": "gpt2",
        "vocab_size": shape.vocabulary,
        "n_positions": max(shape.width, shape.text),
        "n_embd": size.width,
        "n_layer": size.layers,
        "n_head": max(1, size.width // 64),
        "bos_token_id": EOS,
        "eos_token_id": EOS,
    }


def measured(stage: str, precision: str, shape: Shape, launch: dict[str, Any]) -> dict[str, float]:
    """Bytes at the largest moment of the second round, and GFLOP of the third."""
    np.random.seed(0)
    with TensorBytes(apart=BUCKETS) as live:
        setting = Setting(shape, precision, start(0))
        one: Any = (
            OnPolicyRound(setting, shape, launch)
            if stage == "minillm"
            else Supervised(setting, shape, stage, launch)
        )
        if stage == "sft":
            # Nobody needs it.
            setting.teacher = None  # type: ignore[assignment]
        one.round()
        live.restart()
        one.round()
    return {"bytes": live.peak, "gflop": counted(one.round)}


def counted(action: Callable[[], None]) -> float:
    return executed_flops(action)


def compare(name: str) -> dict[str, Any]:
    """Both sides of a run, in a process of its own."""
    stage, precision, shape, launch = RUNS[name]
    found = child.ask("benchmarks.validate_plan", shape, stage=stage, precision=precision, launch=launch)
    work = planned(stage, precision, shape, launch)
    needed = memory(work, "cpu")
    # What a plan adds for DeepSpeed's buckets is left out on both sides.
    bare = dataclasses.replace(needed, buckets=0)
    peak = bare.on("cpu", 1)
    at = max(bare.moments, key=bare.moments.__getitem__)
    gflop = flops.total(work) / 1e9
    return {
        "run": name, "precision": precision, "parameters": work.student.parameters, "at": at,
        "planned": peak, "measured": found["bytes"], "memory": peak / found["bytes"] - 1,
        "planned_gflop": gflop, "measured_gflop": found["gflop"], "flops": gflop / found["gflop"] - 1,
    }  # fmt: skip


def row(values: dict[str, Any]) -> str:
    megabytes = [f"{values[key] / 2**20:,.0f}" for key in ("planned", "measured")]
    gflop = [f"{values[key]:,.1f}" for key in ("planned_gflop", "measured_gflop")]
    cells = [
        values["run"], values["precision"], f"{values['parameters'] / 1e6:.1f}M", values["at"],
        *megabytes, f"{values['memory']:+.1%}", *gflop, f"{values['flops']:+.1%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, default=Path("results/bench/validate-plan.json"))
    args = parser.parse_args()
    print("| run | precision | student | largest moment | planned MB | measured MB | off | "
          "planned GFLOP | counted GFLOP | off |\n|:--|:--|--:|:--|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    rows = []
    for name in args.only:
        rows.append(compare(name))
        print(row(rows[-1]), flush=True)
    write_json(args.out, {"runs": rows})
    sys.exit(any(abs(values[key]) > limit for values in rows for key, limit in LIMITS.items()))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        shape, request = child.asked()
        print(json.dumps(measured(shape=shape, **request)))
    else:
        main()
