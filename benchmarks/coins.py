"""Rollouts token by token and by coins, in alternation: `python -m benchmarks.coins --precision bf16`.

Random GPT-2s, prompts and responses of one length, no EOS: one call of `sample` with `record`, as a
collection makes it.  Two pairs of student and teacher, 16 and 64 rows, each alpha; `--real` ends responses at
lengths drawn from Dolly's.  Prints a table of seconds (medians) and of what token by token takes of them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.shapes import Shape, Size, real_lengths
from benchmarks.stops import Stops
from benchmarks.workload import EOS, FIRST, PAD, make_model
from minillm.config.sections import Sampling
from minillm.models.loading import DTYPES
from minillm.sampling.coins import grouped
from minillm.sampling.sample import Mixture, sample

# Student and teacher.
PAIRS = {"6 x 384": (Size(4, 256), Size(6, 384)), "30 x 576": (Size(16, 576), Size(30, 576))}
TINY = {"1 x 64": (Size(1, 64), Size(1, 64))}
# Rows that share a coin, as `coins` has it; 0: all.
WAYS = {"token by token": None, "groups of 8": 8, "one group": 0}


class Case:
    """One pair of models and as many prompts as rows."""

    def __init__(self, pair: tuple[Size, Size], shape: Shape, precision: str, device: torch.device) -> None:
        self.shape = shape
        self.student, self.teacher = (
            nn.Module.to(make_model(size, shape, seed), device, DTYPES[precision])
            for seed, size in enumerate(pair, 1)
        )
        generator, rows = np.random.default_rng(0), shape.batch
        lengths, ends = [shape.prompt] * rows, [shape.response] * rows
        if shape.real:
            lengths, ends = real_lengths(rows, (shape.prompt, shape.response), 0)
        self.prompts = [generator.integers(FIRST, shape.vocabulary, n).astype(np.int32) for n in lengths]
        self.stops = dict(zip(lengths, ends, strict=True)) if shape.real else {}

    def seconds(self, alpha: float, coins: int | None, step: int) -> float:
        """Of one call; step after step has other coins."""
        groups: Sequence[int] | None = None
        if coins is not None:
            group_of = grouped({i: len(prompt) for i, prompt in enumerate(self.prompts)}, coins)
            groups = [group_of[i] for i in range(len(self.prompts))]
        with Stops(self.student, EOS, self.stops) if self.stops else contextlib.nullcontext():
            wait(self.student)
            begin = time.perf_counter()
            sample(
                self.student,
                self.prompts,
                range(len(self.prompts)),
                Sampling(max_tokens=self.shape.response),
                seed=1,
                step=step,
                ends=[EOS],
                pad=PAD,
                vocabulary=self.shape.vocabulary,
                mixture=Mixture(self.teacher, alpha, groups),
                record=True,
                batch=len(self.prompts),
            )
            wait(self.student)
            return time.perf_counter() - begin


def wait(model: PreTrainedModel) -> None:
    """Until a GPU has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def measured(case: Case, alpha: float, repeats: int) -> dict[str, float]:
    """Median seconds of each of WAYS, which take turns; the first turn is not counted."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn, (way, coins) in itertools.product(range(repeats + 1), WAYS.items()):
        taken = case.seconds(alpha, coins, turn)
        if turn:
            times[way].append(taken)
    return {way: statistics.median(values) for way, values in times.items()}


def line(name: str, rows: int, alpha: float, seconds: dict[str, float]) -> str:
    """A row of the table: seconds, and how many times as fast as token by token."""
    base = seconds["token by token"]
    cells = [f"{value:.2f} ({base / value:.2f})" for value in seconds.values()]
    return f"| {name} | {rows} | {alpha:g} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.2, 0.5])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--real", action="store_true", help="lengths of Dolly's prompts and responses")
    parser.add_argument("--tiny", action="store_true", help="tiny models and vocabulary: a rehearsal")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("| teacher | rows | alpha | " + " | ".join(WAYS) + " |")
    print("|:--|--:|--:|" + "--:|" * len(WAYS))
    pairs = TINY if args.tiny else {name: PAIRS[name] for name in args.pairs}
    for (name, pair), rows in itertools.product(pairs.items(), args.rows):
        shape = Shape(
            vocabulary=500 if args.tiny else 50257,
            batch=rows,
            prompt=args.prompt,
            response=args.response,
            real=args.real,
        )
        case = Case(pair, shape, args.precision, device)
        for alpha in args.alphas:
            print(line(name, rows, alpha, measured(case, alpha, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
