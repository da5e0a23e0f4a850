"""`python docs/demo_coins.py results/demo-coins` prints docs/estimators.md's tables of coins on the demo.

Training curves: dev reverse KL and ROUGE-L by step, means over training seeds with their standard error.
Gradients: the variance of a collection's gradient at the initial student, summed over parameters, as a
multiple of that token by token; the same prompts for each way, errors by resampling collections.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Sampling
from minillm.data.rows import Corpus, Rows
from minillm.models.loading import load_model, load_tokenizer
from minillm.runtime.engine import Engine
from minillm.runtime.processes import start
from minillm.training.dev_set import Dev
from minillm.training.mini_batch import Task
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Memory, collect_rollouts

TEACHER, STUDENT = "demo-teacher", "demo-student"
WAYS = {"minillm": "token by token", "coins-8": "groups of 8", "coins-all": "one group"}
COINS = {"minillm": None, "coins-8": 8, "coins-all": 0}
MEASURES = {"dev_reverse_kl": "reverse KL", "dev_rouge": "ROUGE-L"}
RESAMPLED = 1000


def curve(run: Path, method: str, key: str) -> dict[int, list[float]]:
    """Step -> one value for each training seed."""
    values: dict[int, list[float]] = {}
    for path in sorted((run / "models" / STUDENT / method / TEACHER).glob("seed*/metrics.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if key in record:
                values.setdefault(record["step"], []).append(record[key])
    return values


def print_curves(run: Path) -> None:
    curves = {(key, method): curve(run, method, key) for key in MEASURES for method in WAYS}
    steps = sorted(curves["dev_rouge", "minillm"])
    print("| dev | way | " + " | ".join(f"step {step}" for step in steps) + " |")
    print("|:--|:--|" + "--:|" * len(steps))
    for (key, method), values in curves.items():
        cells = []
        for step in steps:
            each = np.array(values[step])
            cells.append(f"{each.mean():.3g} ± {each.std(ddof=1) / len(each) ** 0.5:.2g}")
        print(f"| {MEASURES[key]} | {WAYS[method]} | {' | '.join(cells)} |")


def gradients(run: Path, settings: OnPolicy, collections: int, seed: int) -> np.ndarray:
    """Gradients of so many collections at the initial student, (collections, parameters)."""
    data = run / "data" / "embedded" / "training"
    tokenizer, world = load_tokenizer(data / "tokenizer"), start(0)
    launch = Launch(zero=0, micro_batch=32, eval_batch=128, teacher_cache=True)
    dev = Dev.open(data, 1, tokenizer, Sampling(max_tokens=settings.max_tokens), launch, 0)
    student = load_model(run / "models" / STUDENT / "init" / f"seed{seed}", "fp32", world.device)
    teacher = load_model(run / "models" / TEACHER / "teacher", "fp32", world.device)
    rows, found = Rows.open(data, "train"), []
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(student, settings, launch, world, "fp32", Path(folder), 1)
        task = Task(engine.frozen(teacher), None, Corpus.open(data), dev, settings, seed)
        weights = [p for p in engine.model.parameters() if p.requires_grad]
        for collection in range(collections):
            rollouts = collect_rollouts(
                engine, task.teacher, rows, dev, settings, Memory(1.0), collection, seed
            )
            parts, loss = micro_batches(engine, task, rollouts, list(range(settings.batch)))
            total = [torch.zeros_like(p) for p in weights]
            for part in parts:
                # The model itself: DeepSpeed's wrapper takes steps, and gives no gradients away.
                value, _ = loss.func(engine.model, part)
                for sum_of, gradient in zip(total, torch.autograd.grad(value, weights), strict=True):
                    sum_of += gradient
            found.append(torch.cat([g.flatten() for g in total]).numpy())
    return np.stack(found)


def print_variances(run: Path, collections: int) -> None:
    seed = 10
    path = run / "configs" / "minillm" / STUDENT / TEACHER / f"{seed}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["training"]
    common = OnPolicy(**known | {"betas": tuple(known["betas"]), "rollouts": 64, "batch": 64})
    found = {
        way: gradients(run, dataclasses.replace(common, coins=COINS[method]), collections, seed)
        for method, way in WAYS.items()
    }
    generator = np.random.default_rng(0)
    drawn = [generator.integers(collections, size=collections) for _ in range(RESAMPLED)]

    def variance(values: np.ndarray) -> float:
        return float(values.var(0, ddof=1).sum())

    base = found["token by token"]
    print(f"\n| gradient of 64 rows, {collections} collections | variance | multiple |\n|:--|--:|--:|")
    for way, values in found.items():
        ratios = [variance(values[i]) / variance(base[i]) for i in drawn]
        multiple = variance(values) / variance(base)
        print(f"| {way} | {variance(values):.4g} | {multiple:.3f} ± {np.std(ratios):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--collections", type=int, default=0, help="for the table of gradients; 0: none")
    args = parser.parse_args()
    print_curves(args.run)
    if args.collections:
        print_variances(args.run, args.collections)


if __name__ == "__main__":
    main()
