"""How many rows there are and how long: of the prepared data, else as the configuration lets expect."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillm.config import layout
from minillm.config.experiment import Experiment
from minillm.config.teaching import USUAL

# Tokens of a prompt (in the alpaca template) and of a response of databricks-dolly-15k, on average
# (benchmarks/lengths.py).
PROMPT, RESPONSE = 58.0, 72.0
# Rows of published files, as config/datasets.yaml counts them.
PUBLISHED = {
    "MiniLLM/dolly/raw.jsonl": 12435,
    "MiniLLM/dolly/valid.jsonl": 500,
    "MiniLLM/self-inst/valid.jsonl": 242,
    "MiniLLM/Vicuna/valid.jsonl": 80,
    "MiniLLM/sinst/11_/valid.jsonl": 1694,
    "nyu-mll/glue": 872,
    "google/boolq": 3270,
}
# Of any other file; the embedded generator's default.
ROWS = 1000
# Characters of English text in a token, about.
CHARACTERS = 4


@dataclass(frozen=True)
class Lengths:
    """Rows and mean tokens of the training data of one tokenizer; `chunks` of plain text of `chunk` tokens.

    `assumed`: whether they are expectations, since the data was not prepared yet.
    """

    train: int
    dev: int
    prompt: float
    response: float
    chunks: int
    chunk: int
    assumed: bool


@dataclass(frozen=True)
class Prompts:
    """Tokens of prompts: on average, and of the longest."""

    mean: float
    longest: int


def rows_of(config: Experiment, name: str) -> int:
    """Rows of a data set, before any are dropped."""
    spec = config.datasets[name]
    published = PUBLISHED.get(spec.path, ROWS)
    left = max(1, published - spec.start) if spec.path in PUBLISHED else published
    read = min(spec.rows, left) if spec.rows and spec.path in PUBLISHED else spec.rows or left
    return min(read, spec.sample) if spec.sample and spec.rows else spec.sample or read


def lengths_of(config: Experiment, tokenizer: str, root: Path = Path()) -> Lengths:
    """Of the data folder of a tokenizer, if it is there."""
    folder = root / layout.run_folder(config.run) / layout.training_data(tokenizer)
    data = config.data
    try:
        names = ("train", "dev", *(["corpus"] if data.corpus else []))
        train, dev, *texts = (np.load(folder / f"{name}.lengths.npy") for name in names)
        chunks = texts[0] if texts else np.zeros(0, np.int32)
        prompt, response = train.reshape(-1, 2).mean(0)
        longest = int(chunks.max(initial=0))
        return Lengths(len(train), len(dev), float(prompt), float(response), len(chunks), longest, False)
    # Not prepared yet, or damaged: the configuration's numbers and Dolly's means stand in.
    except (OSError, ValueError):
        pass
    return Lengths(
        rows_of(config, data.train),
        rows_of(config, data.dev),
        min(PROMPT, data.max_prompt),
        min(RESPONSE, data.max_response),
        rows_of(config, data.corpus) if data.corpus else 0,
        data.corpus_length,
        True,
    )


def shown_of(
    config: Experiment, tokenizer: str, prompt: str, lengths: Lengths, root: Path = Path()
) -> Prompts | None:
    """Prompts of the rows as a teacher is shown them, by a name of `data.prompts`; None if that is as usual.

    Of the prepared rows if they are there.  Otherwise a question counts as a usual prompt, with its template,
    the gold answer as a response, and the text around them by its characters.
    """
    if prompt in ("", USUAL):
        return None
    folder = root / layout.run_folder(config.run) / layout.teaching_data(tokenizer, prompt)
    try:
        train, dev = (
            np.load(folder / f"{name}.lengths.npy").reshape(-1, 2)[:, 0] for name in ("train", "dev")
        )
        return Prompts(float(train.mean()), int(max(train.max(), dev.max())))
    # As for `lengths_of`.
    except (OSError, ValueError):
        pass
    parts = list(string.Formatter().parse(config.data.every_prompt[prompt]))
    around = -(-sum(len(text) for text, *_ in parts) // CHARACTERS)
    places = Counter(place for _, place, _, _ in parts)
    questions, answers = max(1, places["question"] + places["instruction"]), places["output"]
    return Prompts(
        around + questions * lengths.prompt + answers * lengths.response,
        around + questions * config.data.max_prompt + answers * config.data.max_response,
    )
