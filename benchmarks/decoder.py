"""Sampling from one model, before and now, in alternation: `python -m benchmarks.decoder --real`.

100 rows of a random model of 135M parameters' shape: tokens per second (median) and the peak of memory above
what the process holds.  "growing cache" is the way of families whose step has not one shape
(minillm/sampling/kv_cache.py), "one shape" the same batches with caches of fixed size, "refilled" what
`sample` does: rows that end are replaced by others.  Rows have lengths drawn from Dolly's with `--real`, else
the most tokens.  On a GPU `--no-graphs` runs steps uncaptured.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.coins import wait
from benchmarks.meter import Meter
from benchmarks.shapes import Shape, Size, real_lengths
from benchmarks.stops import Stops
from benchmarks.workload import EOS, FIRST, PAD, make_model
from minillm.config.sections import Sampling
from minillm.models.loading import DTYPES
from minillm.sampling import one_shape
from minillm.sampling import sample as sampling

WAYS = ("growing cache", "one shape", "refilled")


def llama(shape: Shape, tiny: bool) -> PreTrainedModel:
    """SmolLM-135M's shape, or a tiny one, with random weights."""
    torch.manual_seed(1)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    if not tiny:
        size = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        size["num_attention_heads"] = 9
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        num_key_value_heads=2 if tiny else 3,
        max_position_embeddings=shape.width,
        tie_word_embeddings=True,
        **size,
    )
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    return model


@contextlib.contextmanager
def by(way: str) -> Iterator[None]:
    """Inside, `sample` works in this way."""
    with contextlib.ExitStack() as stack:
        if way == "growing cache":
            stack.enter_context(mock.patch.object(one_shape, "possible", lambda model: False))
        elif way == "one shape":
            stack.enter_context(mock.patch.object(sampling, "refilled", sampling._together))
        yield


class Case:
    """The model and its prompts."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        vocabulary = 500 if args.tiny else 50257 if args.family == "gpt2" else 49152
        self.shape = Shape(
            vocabulary, batch=args.rows, prompt=args.prompt, response=args.response, real=args.real
        )
        size = Size(2, 64) if args.tiny else Size(30, 576)
        gpt2 = args.family == "gpt2"
        made = make_model(size, self.shape, 1) if gpt2 else llama(self.shape, args.tiny)
        self.model = nn.Module.to(made, device, DTYPES[args.precision])
        self.batch, self.graphs = args.batch, not args.no_graphs
        generator, self.stops = np.random.default_rng(0), {}
        lengths = [args.prompt] * args.rows
        if args.real:
            lengths, ends = real_lengths(args.rows, (args.prompt, args.response), 0)
            self.stops = dict(zip(lengths, ends, strict=True))
        self.prompts = [generator.integers(FIRST, vocabulary, n).astype(np.int32) for n in lengths]

    def measured(self, way: str, meter: Meter) -> tuple[float, float, list[list[int]]]:
        """(seconds, MB above what is held, the responses) of one call."""
        with by(way), Stops(self.model, EOS, self.stops) if self.stops else contextlib.nullcontext():
            held = meter.held()
            meter.begin()
            wait(self.model)
            begin = time.perf_counter()
            found = sampling.sample(
                self.model,
                self.prompts,
                range(len(self.prompts)),
                Sampling(max_tokens=self.shape.response),
                seed=1,
                step=0,
                ends=[EOS] if self.stops else [],
                pad=PAD,
                vocabulary=self.shape.vocabulary,
                batch=self.batch,
                graphs=self.graphs,
            )
            wait(self.model)
            seconds = time.perf_counter() - begin
            return seconds, meter.peak() - held, [response.tokens.tolist() for response in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--family", choices=("gpt2", "llama"), default="gpt2")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32, help="rows at once")
    parser.add_argument("--prompt", type=int, default=256, help="most tokens of a prompt")
    parser.add_argument("--response", type=int, default=256, help="most tokens of a response")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--real", action="store_true", help="lengths of Dolly's prompts and responses; GPT-2")
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: a rehearsal")
    args = parser.parse_args()
    if args.real and args.family != "gpt2":
        parser.error("--real ends responses by GPT-2's last bias: leave --family at gpt2")
    case = Case(args, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    meter, seconds, peaks = Meter(), {way: [] for way in WAYS}, {way: [] for way in WAYS}
    answers: dict[str, list[list[int]]] = {}
    for turn in range(args.repeats + 1):
        for way in WAYS:
            taken, peak, answers[way] = case.measured(way, meter)
            # Kernels are chosen in the first turn.
            if turn:
                seconds[way].append(taken)
                peaks[way].append(peak)
    tokens = sum(map(len, answers[WAYS[0]]))
    print("| way | seconds | tokens/s | times as fast | peak, MB | rows as before |")
    print("|:--|--:|--:|--:|--:|--:|")
    base = statistics.median(seconds[WAYS[0]])
    for way in WAYS:
        median, same = statistics.median(seconds[way]), zip(answers[way], answers[WAYS[0]], strict=True)
        cells = f"{median:.2f} | {tokens / median:.0f} | {base / median:.2f} | {max(peaks[way]):.0f}"
        print(f"| {way} | {cells} | {sum(a == b for a, b in same)} of {args.rows} |")


if __name__ == "__main__":
    main()
