"""From text to tokens to batches: prompt templates, joint tokenisation, padding and masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_case import REAL, needs_data

from minillm.data import embedded_corpus
from minillm.data.batching import collate
from minillm.data.prompts import encode, render
from minillm.data.sources import Row
from minillm.data.tokenizers import END, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(embedded_corpus.plain_text(100), 400)


# --- template
def test_templates() -> None:
    bare, full = Row(0, "Do it.", "", ("x",)), Row(0, "Do {it}.", "with {this}", ("x",))
    assert render(bare, "alpaca") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo it.\n\n### Response:\n"
    )
    assert render(full, "alpaca") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo {it}.\n\n### Input:\nwith {this}\n\n### Response:\n"
    )
    assert render(bare, "plain") == "Do it.\n### Response:\n"
    assert render(full, "plain") == "Do {it}.\nwith {this}\n### Response:\n"


@needs_data
@pytest.mark.parametrize("name", ["dolly/dev", "dolly/test", "self_inst/test", "vicuna/test", "sni/test"])
def test_template_agrees_with_every_released_prompt(name: str) -> None:
    path = Path(REAL or "") / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert len(rows) >= 80
    for entry in rows:
        assert (
            render(Row(0, entry["instruction"], entry.get("input") or "", ("x",)), "alpaca")
            == entry["prompt"]
        )


# --- one row
def test_joint_tokenisation_and_one_eos(tokenizer: Any) -> None:
    prompt, response = "Say the word.\n### Response:\n", "The fox is red."
    p, r, notes = encode(tokenizer, prompt, response, 64)
    assert p + r[:-1] == tokenizer.encode(prompt + response, add_special_tokens=False)
    assert r[-1] == tokenizer.eos_token_id and (p + r).count(tokenizer.eos_token_id) == 1 and not notes
    assert encode(tokenizer, prompt, response + END, 64)[1] == r


def test_a_merge_across_the_boundary_is_taken_apart_and_counted() -> None:
    loaded = train_tokenizer(["ab ab ab ab"] * 20, 270)
    assert len(loaded.encode("ab")) == 1
    p, r, notes = encode(loaded, "a", "b", 8)
    assert p == loaded.encode("a") and r == [*loaded.encode("b"), loaded.eos_token_id]
    assert notes == {"boundary_merged": 1}


def test_a_response_that_starts_with_a_newline_merges_too() -> None:
    loaded = train_tokenizer(["a:\n\n\nb"] * 50, 270)
    assert len(loaded.encode("\n\n")) == 1
    p, r, notes = encode(loaded, "a:\n", "\n\nb", 8)
    assert (
        p == loaded.encode("a:\n")
        and loaded.decode(p + r[:-1]) == "a:\n\n\nb"
        and notes == {"boundary_merged": 1}
    )


@pytest.mark.parametrize("rest", [" and more", "\n", END + "x"])
def test_an_eos_inside_a_response_ends_it_there(tokenizer: Any, rest: str) -> None:
    ended = [*tokenizer.encode("The fox."), tokenizer.eos_token_id]
    assert encode(tokenizer, "p\n", "The fox." + END + rest, 64)[1:] == (ended, {"eos_inside": 1})


def test_a_long_response_is_cut_without_eos(tokenizer: Any) -> None:
    whole = encode(tokenizer, "p\n", "one two three four five", 64)[1]
    for limit in (1, len(whole) - 1):
        _, cut, notes = encode(tokenizer, "p\n", "one two three four five", limit)
        assert cut == whole[:limit] and tokenizer.eos_token_id not in cut and notes == {"response_cut": 1}
    assert encode(tokenizer, "p\n", "one two three four five", len(whole)) == (
        tokenizer.encode("p\n"),
        whole,
        {},
    )


# --- batches
def array(*tokens: int) -> np.ndarray:
    return np.asarray(tokens, dtype=np.int32)


def test_collate_layout() -> None:
    batch = collate([(array(5, 6, 7), array(8, 9)), (array(3), array(4, 2, 1, 9))], pad=0)
    assert (
        batch.start == 1
    )  # the width is that of the longest example, not of the longest prompt plus the longest response
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9], [3, 4, 2, 1, 9]]
    assert batch.mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    batch = collate([(array(5, 6, 7), array(8, 9)), (array(3), array(4))], pad=0)
    assert batch.start == 3
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9], [0, 0, 0, 3, 4]]
    assert batch.attention.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert batch.mask.tolist() == [[1, 1], [0, 1]]
    assert {batch.tokens.dtype, batch.attention.dtype, batch.positions.dtype} == {
        torch.int64
    } and batch.mask.dtype == torch.float32


def test_masks_come_from_lengths_where_eos_is_pad() -> None:
    end = 9
    batch = collate([(array(end, 1, end), array(end, 2, end)), (array(end), array(end))], pad=end)
    assert batch.attention.tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1]]
    assert batch.tokens[:, batch.start :].tolist() == [[end, 2, end], [end, end, end]]


def test_batch_moves() -> None:
    moved = collate([(array(1), array(2))], pad=0).to(torch.device("meta"))
    assert moved.start == 1
    assert {
        moved.tokens.device.type,
        moved.attention.device.type,
        moved.positions.device.type,
        moved.mask.device.type,
    } == {"meta"}
