"""What training reads from a data folder: tokenised rows and chunks of the corpus, memory-mapped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minillm.errors import UserError


@dataclass(frozen=True)
class Rows:
    """Tokenised rows of a data folder, memory-mapped; stored lengths separate prompts and responses."""

    folder: Path
    split: str
    tokens: np.ndarray
    lengths: np.ndarray  # (rows, 2)
    starts: np.ndarray

    @classmethod
    def open(cls, folder: Path, split: str) -> Rows:
        """Raises UserError if `folder` is not a data folder."""
        if not (folder / f"{split}.tokens.npy").is_file():
            raise UserError(f"{folder}: no {split} rows here; run the data stage first")
        lengths = np.load(folder / f"{split}.lengths.npy")
        starts = np.concatenate([[0], lengths.sum(1).cumsum()])
        return cls(folder, split, np.load(folder / f"{split}.tokens.npy", mmap_mode="r"), lengths, starts)

    def __len__(self) -> int:
        return len(self.lengths)

    def prompt(self, i: int) -> np.ndarray:
        """Token ids of prompt i, (length,) int32."""
        return np.asarray(self.tokens[self.starts[i] : self.starts[i] + self.lengths[i, 0]])

    def response(self, i: int) -> np.ndarray:
        """Token ids of response i, its EOS included unless it was cut."""
        return np.asarray(self.tokens[self.starts[i] + self.lengths[i, 0] : self.starts[i + 1]])

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The rows as text: id, instruction, input, prompt, response, references."""
        with open(self.folder / f"{self.split}.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @cached_property
    def ids(self) -> list[int]:
        return [int(record["id"]) for record in self.records]


@dataclass(frozen=True)
class Corpus:
    """Chunks of the pre-training corpus, memory-mapped."""

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Raises UserError if `folder` is not a data folder."""
        if not (folder / "corpus.lengths.npy").is_file():
            raise UserError(f"{folder}: no corpus here; run the data stage first")
        starts = np.concatenate([[0], np.load(folder / "corpus.lengths.npy").cumsum()])
        return cls(np.load(folder / "corpus.tokens.npy", mmap_mode="r"), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def chunk(self, i: int) -> np.ndarray:
        """Token ids of chunk i, (length,) int32."""
        return np.asarray(self.tokens[self.starts[i] : self.starts[i + 1]])
