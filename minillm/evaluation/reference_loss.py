"""Stage `reference_loss`: a model's cross-entropy on a test set's first references (the paper's Table 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.config.launch import Launch
from minillm.config.measurements.diversity import ReferenceLossSettings
from minillm.data.batching import collate, least_padding
from minillm.data.prompts import encode
from minillm.data.rows import Example
from minillm.data.sources import read_tests
from minillm.data.tokenizers import vocabulary_size
from minillm.evaluation.statistics import mean_and_error
from minillm.files import identity, origin, write_json
from minillm.models.head import response_tokens, response_values, token_logprobs
from minillm.models.loading import load_model, load_tokenizer, special_tokens
from minillm.models.positions import check_positions
from minillm.runtime.processes import start


def examples_of(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], settings: ReferenceLossSettings
) -> Example:
    """Prompt and first reference as token ids; under "released" a reference may end up empty.

    "tokens": as in training, tokenised together, with an EOS at the end.  "released" (D21): the reference by
    itself, with the tokenizer's special tokens (LLaMA: a BOS, which is a target) and without EOS, which is
    padding there.
    """
    if settings.loss == "tokens":
        text, limit = row["references"][0], settings.max_response
        prompt, reference, _ = encode(tokenizer, row["prompt"], text, limit, chat="messages" in row)
    else:
        prompt = row["prompt_tokens"]
        reference = tokenizer.encode(row["references"][0])[: settings.max_response]
        reference = [token for token in reference if token != tokenizer.eos_token_id]
    return np.asarray(prompt, dtype=np.int32), np.asarray(reference, dtype=np.int32)


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    vocabulary: int,
    pad: int,
    batch: int,
    budget: int = 0,
) -> list[float]:
    """Cross-entropy of each reference, summed over its tokens, in nats.

    `batch` examples at a time, of at most `budget` positions.
    """
    device = next(model.parameters()).device
    sums: dict[int, float] = {}
    for part in least_padding(range(len(examples)), lambda i: sum(map(len, examples[i])), batch, budget):
        rows = collate([examples[i] for i in part], pad).to(device)
        tokens = response_tokens(rows)

        def loss(logits: torch.Tensor, tile: slice, tokens: torch.Tensor = tokens) -> torch.Tensor:
            return -token_logprobs(logits, tokens[tile])

        values = response_values(model, rows, vocabulary, loss).double().cpu().numpy()
        ends = np.cumsum([len(examples[i][1]) for i in part])[:-1]
        sums.update((i, float(v.sum())) for i, v in zip(part, np.split(values, ends), strict=True))
    return [sums[i] for i in range(len(examples))]


def run_stage(settings: ReferenceLossSettings, launch: Launch, *, test: Path, model: Path, out: Path) -> None:
    """Write the mean loss over all reference tokens ("released": over rows of the row's mean), in nats.

    The standard error is over rows; for the mean over tokens it is that of a ratio.  "nll" and "tokens" are
    each row's sum and count; "reference_tokens" is the mean length over all rows of the whole first
    reference, without special tokens, as `lengths` counts it.
    """
    rows = sorted(read_tests(test), key=lambda row: row["id"])
    sources = {test: identity(test), model: identity(model)}
    world = start(0, launch.patience)
    tokenizer = load_tokenizer(model)
    loaded = load_model(model, settings.precision, world.device)
    encoded = [(row["id"], examples_of(tokenizer, row, settings)) for row in rows]
    longest = max(len(prompt) + len(reference) for _, (prompt, reference) in encoded)
    what = f"a prompt and its reference have {longest} tokens (data.max_prompt, data.max_response)"
    check_positions(loaded, longest, what)
    kept = [(id_, example) for id_, example in encoded if len(example[1])]
    mine = [example for _, example in kept][world.rank :: world.size]
    pad = special_tokens(tokenizer)[1]
    how = {"pad": pad, "batch": launch.micro_batch, "budget": launch.micro_tokens}
    parts = world.gather(losses(loaded, mine, vocabulary=vocabulary_size(tokenizer), **how))
    if world.rank == 0:
        nll = [parts[i % world.size][i // world.size] for i in range(len(kept))]
        tokens = [len(reference) for _, (_, reference) in kept]
        mean, error = summary(nll, tokens, settings.loss)
        lengths = [len(tokenizer.encode(row["references"][0], add_special_tokens=False)) for row in rows]
        write_json(
            out,
            {
                "metric": "reference_loss",
                "dataset": rows[0]["dataset"],
                "n": len(kept),
                "without_reference": len(encoded) - len(kept),
                "loss": settings.loss,
                "mean": mean,
                "standard_error": error,
                "over": "prompts",
                "ids": [id_ for id_, _ in kept],
                "nll": nll,
                "tokens": tokens,
                "reference_tokens": math.fsum(lengths) / len(lengths),
                **origin(settings, sources),
            },
        )
    world.barrier()


def summary(nll: Sequence[float], tokens: Sequence[int], loss: str) -> tuple[float, float | None]:
    """(mean, standard error): "tokens" over all tokens, with the error of a ratio; "released" over row means.

    Raises ValueError if there are no rows.
    """
    if loss == "released":
        return mean_and_error(value / count for value, count in zip(nll, tokens, strict=True))
    if not tokens:
        raise ValueError("no reference to take the loss on")
    total, n = sum(tokens), len(tokens)
    mean = math.fsum(nll) / total
    if n < 2:
        return mean, None
    squares = math.fsum((value - mean * count) ** 2 for value, count in zip(nll, tokens, strict=True))
    return mean, math.sqrt(squares * n / (n - 1)) / total
