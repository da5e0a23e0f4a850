"""The section `estimators` of a configuration: the exact study of gradient estimators."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Name, Positive, Seed


@dataclass(frozen=True, config=STRICT)
class Estimators:
    """The exact study of gradient estimators (docs/estimators.md).

    It sets how small the study is, and how far apart student and teacher are.
    """

    vocabulary: int = Field(default=3, ge=2, le=5, description="Tokens of the vocabulary, EOS included.")
    horizon: int = Field(
        default=4,
        ge=1,
        le=6,
        description="Longest sequence in tokens; all sequences up to it are enumerated.",
    )
    seeds: tuple[Seed, ...] = Field(
        default=(1, 2, 3),
        min_length=1,
        description="Each seed draws one random pair of student and teacher per distance.",
    )
    alphas: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.2, 0.5),
        description="Teacher's shares in the sampling mixture; the student's own samples are always studied.",
    )
    distances: dict[Name, Positive] = Field(
        default_factory=lambda: {"near": 0.1, "middle": 0.5, "far": 2.0, "disjoint": 3.0},
        description="How far apart student and teacher are: a name, and the standard deviation of the "
        "difference between their logits. `disjoint` instead sets them apart by that many nats on the "
        "teacher's likeliest tokens.",
    )
