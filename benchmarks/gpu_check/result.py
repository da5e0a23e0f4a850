"""What a check says: its limits, each met or not, what else it measured, or why it was left out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks import child
from benchmarks.report import Check


@dataclass(frozen=True)
class Result:
    """`limits` decide; `values` are only shown; with `skipped`, a reason, nothing was measured."""

    limits: list[Check] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""


def most(name: str, value: float, limit: float) -> Check:
    """A value that must be at most `limit`."""
    return Check(name, float(value), float(limit), False)


def least(name: str, value: float, limit: float) -> Check:
    """A value that must be at least `limit`."""
    return Check(name, float(value), float(limit), True)


def answer(run: Callable[..., Result]) -> None:
    """In a check's process: run it as asked and print its result."""
    shape, request = child.asked()
    result = run(shape, **request)
    # Of several processes only the first speaks.
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(dataclasses.asdict(result)), flush=True)


def read(values: dict[str, Any]) -> Result:
    """A result from what its process printed."""
    limits = [Check(**limit) for limit in values["limits"]]
    return Result(limits, values["values"], values["skipped"])
