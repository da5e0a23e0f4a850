"""The lengths of a data folder and what models take, compared before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from minillm.data.rows import Rows
from minillm.models.positions import check_positions
from minillm.readers import read_object


def check_limits(model: PreTrainedModel, data: Path, name: object) -> None:
    """Raises UserError if the data folder's limits are longer than the model takes: when it comes in.

    `name` stands for the model.
    """
    card = read_object(data / "card.json", {}, "no data folder here", "run the data stage again")
    prompt, response = card.get("max_prompt"), card.get("max_response")
    # Cards of older runs have no limits.
    if isinstance(prompt, int) and isinstance(response, int):
        total = prompt + response
        what = f"data.max_prompt + data.max_response is {prompt} + {response} = {total}"
        check_positions(model, total, what, name)
    # The card does not name this limit, but all chunks except the last are as long.
    if (data / "corpus.lengths.npy").is_file():
        longest = int(np.load(data / "corpus.lengths.npy").max())
        check_positions(model, longest, f"data.corpus_length is {longest}", name)


def check_rows(
    model: PreTrainedModel,
    data: Path,
    max_tokens: int,
    examples: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    key: str = "data.max_prompt",
) -> None:
    """Raises UserError if rows, or prompts and `max_tokens` sampled ones, are longer than the model takes.

    `examples` are the rows that it is trained on, if those are not the data folder's.  `key` says how long
    prompts are.
    """
    longest = max((len(prompt) + len(response) for prompt, response in examples), default=0)
    check_positions(model, longest, f"a prompt and its response have {longest} tokens (max_tokens)")
    for split in ("train", "dev"):
        prompts, responses = Rows.open(data, split).lengths.T
        total, prompt = int((prompts + responses).max()), int(prompts.max())
        check_positions(model, total, f"a {split} row has {total} tokens ({key}, data.max_response)")
        # The last token is sampled and not read.
        what = f"a {split} prompt has {prompt} tokens ({key}) and max_tokens is {max_tokens}"
        check_positions(model, prompt + max_tokens - 1, what)
