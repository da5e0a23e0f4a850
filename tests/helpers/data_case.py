"""What the tests of the data stages share: small settings, and files of rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm.config.data import Dataset, Tokenizer
from minillm.config.stage_settings import DataSettings, TestSettings
from minillm.errors import UserError

REAL = os.environ.get("MINILLM_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="MINILLM_DATA is unset: no real data here")


def embedded(split: str, rows: int, **more: Any) -> Dataset:
    return Dataset(source="embedded", split=split, rows=rows, **more)


BASE = DataSettings(
    stage="data",
    tokenizer=Tokenizer(source="train", vocabulary=400),
    train=embedded("train", 80),
    dev=embedded("dev", 20),
    corpus=embedded("text", 60),
    template="plain",
    max_prompt=96,
    max_response=80,
    corpus_length=64,
    seed=0,
)
TEST = TestSettings(
    stage="testset", name="tests", dataset=embedded("test", 30), template="plain", max_prompt=96, seed=0
)


def card(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_file(path: Path, *rows: dict[str, Any]) -> Dataset:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset(source="folder", path=str(path))


def row(instruction: str, output: Any = "fine", **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "output": output, **more}
