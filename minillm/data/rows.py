"""What training reads from a data folder: tokenised rows and chunks of the corpus, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minillm.errors import UserError
from minillm.readers import Kind, all_are, read_json_lines

AGAIN = "remove the data folder and run the data stage again"
ROW: dict[str, Kind] = {
    "id": int,
    "instruction": str,
    "input": str,
    "prompt": str,
    "response": str,
    "references": list,
}


# Prompt ids, response ids.
Example = tuple[np.ndarray, np.ndarray]


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
        """Raises UserError if `folder` is not a data folder, or its files are damaged."""
        if not (folder / f"{split}.tokens.npy").is_file():
            raise UserError(f"{folder}: no {split} rows here; run the data stage first")
        tokens, lengths, starts = _tokens(folder, split, (2,))
        return cls(folder, split, tokens, lengths, starts)

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
        """The rows as text: id, instruction, input, prompt, response, references.

        Raises UserError if the file is damaged or has another number of rows than there are tokens for.
        """
        path = self.folder / f"{self.split}.jsonl"
        records = [record for _, record in read_json_lines(path, ROW, again=AGAIN)]
        if len(records) != len(self):
            raise UserError(f"{path}: {len(records)} rows, but tokens of {len(self)}; {AGAIN}")
        if not all(all_are(record["references"], str) for record in records):
            raise UserError(f"{path}: a reference that is not text; {AGAIN}")
        return records

    @cached_property
    def ids(self) -> list[int]:
        return [int(record["id"]) for record in self.records]


@dataclass(frozen=True)
class Corpus:
    """Chunks of the pre-training corpus, memory-mapped."""

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def none(cls) -> Corpus:
        """No chunks."""
        return cls(np.zeros(0, np.int32), np.zeros(1, np.int64))

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Raises UserError if `folder` is not a data folder, or its files are damaged."""
        if not (folder / "corpus.lengths.npy").is_file():
            raise UserError(f"{folder}: no corpus here; run the data stage first")
        tokens, _, starts = _tokens(folder, "corpus", ())
        return cls(tokens, starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def chunk(self, i: int) -> np.ndarray:
        """Token ids of chunk i, (length,) int32."""
        return np.asarray(self.tokens[self.starts[i] : self.starts[i + 1]])


def _tokens(folder: Path, name: str, part: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, memory-mapped; lengths, (rows, *part); where each row starts and the last one ends)."""
    tokens, lengths = (_array(folder / f"{name}.{kind}.npy") for kind in ("tokens", "lengths"))
    lengths = np.array(lengths)
    sums = lengths.sum(tuple(range(1, lengths.ndim)), dtype=np.int64)
    starts = np.concatenate([[0], sums.cumsum()])
    fits = tokens.ndim == 1 and lengths.shape[1:] == part and starts[-1] == len(tokens)
    if not fits or not len(lengths) or lengths.min() < 0:
        raise UserError(
            f"{folder / name}.lengths.npy: does not fit {name}.tokens.npy (lengths of the shape "
            f"{lengths.shape}, {int(starts[-1])} tokens in all; tokens of the shape {tokens.shape}); {AGAIN}"
        )
    return tokens, lengths, starts


def _array(path: Path) -> np.ndarray:
    """An array of int32, memory-mapped: a damaged header cannot ask for more memory than the file has."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except Exception as error:
        # numpy reads the header as a Python literal and raises many kinds of exceptions if it is damaged.
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); {AGAIN}") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.int32 or not 1 <= array.ndim <= 2:
        raise UserError(f"{path}: not an array of int32 with one or two dimensions; {AGAIN}")
    return array
