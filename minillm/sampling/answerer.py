"""What is to be answered, and who answers it if that is not a model of transformers in this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillm.config.sampling import Sampling

# Seeds of other programs are drawn with other keys than everything else.
SEEDS = 2**44


@dataclass(frozen=True)
class Request:
    """One row to answer with one seed: `key` identifies it within the job and sorts the results.

    Its random numbers come from (`seed`, `step`, `row`).
    """

    key: tuple[Any, ...]
    row: int
    seed: int
    prompt: np.ndarray
    step: int = 0


@dataclass(frozen=True)
class Answer:
    """Token ids of a response (with the EOS if `finished`)."""

    tokens: np.ndarray
    finished: bool


class Answerer(ABC):
    """Another program that samples: vLLM, a server."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What the record of the answers says of it."""

    @abstractmethod
    def check(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> None:
        """Raises UserError if the prompts cannot be answered with these settings."""

    @abstractmethod
    def answers(
        self, requests: Sequence[Request], sampling: Sampling, eos: int, vocabulary: int
    ) -> Iterator[tuple[Request, Answer]]:
        """Each request with its answer, in any order, as soon as it is there.

        Answers end after `eos` or `sampling.max_tokens`, hold no id from `vocabulary` on, and depend neither
        on the other requests nor on their order (beyond rounding).
        """

    def close(self) -> None:  # noqa: B027
        """End what was started."""


def seed_of(request: Request) -> int:
    """The seed of a request in another program, below 2^63: Philox with key (seed, step), row in its counter.

    So an answer does not depend on the other requests, their order or resuming.
    """
    bits = np.random.Philox(key=[request.seed + SEEDS, request.step], counter=[0, 0, request.row, 0])
    return int(bits.random_raw()) >> 1
