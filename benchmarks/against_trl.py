"""Like for like with a trainer of TRL: `python -m benchmarks.against_trl --trainer NAME --python PATH`.

`make bench-trl` sets both up: `minillm` of TRL 1.14.2, `distillation` (beta = 1: on-policy reverse KL) of
TRL 1.16.0.  One step is 16 prompts of 64 tokens, 64 sampled tokens each, and one update, from the same
weights.  What the trainer lacks is off here: teacher-mixed sampling, plain text, whitening, scaled and
clipped rewards, further inner epochs.  Rows have equal lengths because the former scores left-padded GPT-2
rows at wrong positions and counts padding.  "bf16" is each side's own: autocast there, bf16 weights with
float32 copies in the optimizer here.  Both at two vocabularies.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from benchmarks import child, report
from benchmarks.run import say
from benchmarks.shapes import FIXED, Shape
from benchmarks.sides import Ours
from benchmarks.speed import seconds, spread
from benchmarks.workload import Setting, make_model
from minillm.runtime.processes import World, start

REPEATS = 5
# The larger one is Qwen2.5's.
VOCABULARIES = (FIXED.vocabulary, 152_064)
# This process's rank variables; the worker is not part of its world.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LIKE: dict[str, dict[str, Any]] = {
    "minillm": {
        "alpha": 0.0,
        "lm_coef": 0.0,
        "inner_epochs": 1,
        "whiten": "none",
        "reward_scale": 1.0,
        "reward_clip": 0.0,
        "importance": "none",
        "include_current": True,
        "gamma": 0.95,
    },
    "distillation": {"objective": "reverse_kl", "alpha": 0.0, "lm_coef": 0.0, "inner_epochs": 1},
}


class Trl:
    """The worker process."""

    def __init__(self, python: str, trainer: str, folder: Path, precision: str) -> None:
        self.log = folder / "trl.log"
        environment = {key: value for key, value in os.environ.items() if key not in RANKS}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.trl_worker", trainer, str(folder), precision],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def step(self) -> dict[str, float]:
        """One step.  RuntimeError with the end of its log if it has died."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        # It has died: no answer comes, which is reported below.
        except BrokenPipeError:
            pass
        answer = answer_of(self.process.stdout)
        if answer is None:
            raise RuntimeError(f"TRL's trainer ended: {self.log.read_text(encoding='utf-8')[-3000:]}")
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def answer_of(stream: IO[str]) -> dict[str, float] | None:
    """The next line of JSON, skipping anything else that is printed."""
    for line in stream:
        if line.startswith('{"seconds"'):
            answer: dict[str, float] = json.loads(line)
            return answer
    return None


def compare(python: str, trainer: str, shape: Shape, precision: str, world: World) -> dict[str, Any]:
    """Both sides in alternation after one untimed step each; our memory in a separate process."""
    setting, like = Setting(shape, precision, world), LIKE[trainer]
    data = setting.make()
    for name, size, seed in (("student", shape.student, 1), ("teacher", shape.teacher, 2)):
        make_model(size, shape, seed).save_pretrained(setting.folder / name)
    data.tokenizer.save_pretrained(setting.folder / "tokenizer")
    prompts = [" ".join(f"t{token}" for token in data.rows.prompt(i)) for i in range(shape.batch)]
    request = {"prompts": prompts, "response": shape.response, "gamma": like.get("gamma", 1.0)}
    (setting.folder / "prompts.json").write_text(json.dumps(request), encoding="utf-8")

    ours, trl = Ours(setting, shape, data, **like), Trl(python, trainer, setting.folder, precision)
    ours.update(ours.rollout())
    trl.step()
    mine, theirs = [], []
    for repeat in range(REPEATS):
        mine.append(seconds(lambda: ours.update(ours.rollout()))[0])
        theirs.append(trl.step())
        say(
            f"{trainer}, V {shape.vocabulary}, {precision} {repeat + 1}/{REPEATS}: "
            f"ours {mine[-1]:.2f} s, TRL {theirs[-1]['seconds']:.2f} s"
        )
    trl.close()
    memory = child.ask("benchmarks.memory", shape, side="ours", precision=precision, warm=True, **like)
    values = {
        "ours": {"seconds": spread(mine)["median"], "above": memory["above"]},
        "trl": {
            "seconds": spread([t["seconds"] for t in theirs])["median"],
            "above": max(t["above"] for t in theirs),
        },
    }
    ratios = {key: values["trl"][key] / values["ours"][key] for key in ("seconds", "above")}
    return values | {"ratios": ratios, "all": {"ours": mine, "trl": theirs}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", choices=LIKE, default="minillm")
    parser.add_argument("--python", required=True, help="the interpreter of an environment with its TRL")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args()
    world = start(0)
    results: dict[str, Any] = {"machine": report.machine(), "trl": {}}
    for vocabulary in args.vocabularies:
        shape = dataclasses.replace(FIXED, vocabulary=vocabulary)
        for precision in args.precisions:
            results["trl"][f"{precision} V{vocabulary}"] = compare(
                args.python, args.trainer, shape, precision, world
            )
    say(f"written: {report.write(results, args.out, f'trl-{args.trainer}')} and its .json")
    print(report.summary(results))
    sys.exit(0 if all(check.met for check in report.checks(results)) else 1)


if __name__ == "__main__":
    main()
