"""Sampling from one model or from the teacher-mixed distribution (Eq. 4), each model with its own KV cache.

Every random number comes from (seed, step, row id, position) by a counter-based generator, so a row's
response does not depend on its batch, its neighbours, their order, the number of processes, or resuming
(beyond rounding).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from minillm.config.sections import Sampling
from minillm.data.batching import by_length
from minillm.models.onednn_layout import packed
from minillm.models.positions import check_positions
from minillm.sampling import one_shape
from minillm.sampling.coins import coins
from minillm.sampling.logit_filters import Filters
from minillm.sampling.progress import Progress
from minillm.sampling.refilled import Numbers, refilled
from minillm.sampling.response import How as How
from minillm.sampling.response import Mixture as Mixture
from minillm.sampling.response import Record as Record
from minillm.sampling.response import Response as Response
from minillm.sampling.together import Batch

# What the teacher puts in the place of a token is drawn with other keys than everything else.
REPLACEMENTS = 2**45


def uniforms(seed: int, step: int, rows: Sequence[int], length: int) -> np.ndarray:
    """Numbers in [0, 1), shape (rows, length): Philox with key (seed, step) and the row id in its counter."""
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, row, 0])).random(length)
            for row in rows
        ]
    )


def sample(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    rows: Sequence[int],
    sampling: Sampling,
    *,
    seed: int,
    step: int,
    ends: Sequence[int],
    pad: int,
    vocabulary: int,
    mixture: Mixture | None = None,
    record: bool = False,
    batch: int = 32,
    budget: int = 0,
    graphs: bool = True,
) -> list[Response]:
    """A response to each prompt (1-D id arrays), in order; the random numbers come from the ids `rows`.

    Any of the tokens `ends` ends a response; the first is the student's own, for which the teacher's stands
    (`Mixture.end`).  With a `mixture`, tokens are drawn from alpha p + (1 - alpha) q; `record` keeps a
    `Record` of every sampled token, so that nothing has to be scored again.  Top-k and n-gram block are for
    evaluation: with a mixture or with `record` they raise ValueError, as does a top-p if the teacher has a
    share in the mixture; what is recorded of tokens drawn with top-p is of the whole distributions.  Prompts
    of similar length are answered together, at most `batch` of them, and only as many as have, with the
    longest responses, at most `budget` positions (0: any number); `vocabulary` cuts off padded entries, which
    can never be sampled.  `graphs`: on a GPU, steps are captured as CUDA graphs.
    """
    how = How(sampling, seed, step, ends, pad, vocabulary, record, batch, budget, graphs)

    def numbers(items: Sequence[int]) -> np.ndarray:
        return uniforms(seed, step, [rows[i] for i in items], sampling.max_tokens)

    def spare(items: Sequence[int]) -> np.ndarray:
        return uniforms(seed + REPLACEMENTS, step, [rows[i] for i in items], sampling.max_tokens)

    responses = dict(as_they_end(model, prompts, numbers, how, mixture, spare))
    return [responses[i] for i in range(len(prompts))]


@torch.no_grad()
def as_they_end(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    numbers: Numbers,
    how: How,
    mixture: Mixture | None = None,
    spare: Numbers | None = None,
) -> Iterator[tuple[int, Response]]:
    """What `sample` returns, (number of the prompt, response), as soon as it is there.

    `numbers` draw the tokens of some prompts, in place of a seed, a step and rows; `spare` those that the
    teacher replaces; `how` has those of coins.  Until the last response is taken the models must not change.
    """
    whole = how.sampling if mixture and mixture.alpha else dataclasses.replace(how.sampling, top_p=1.0)
    if (mixture or how.record) and Filters(whole, ()):
        raise ValueError(
            "rollouts take only a temperature, and with alpha 0 a top-p: no top-k, no n-gram block"
        )
    if mixture and mixture.groups is not None and (mixture.interferes or how.sampling.top_p < 1):
        raise ValueError("coins: no top-p, and the teacher reads too late to replace or to end anything")
    check_room(model, prompts, how.sampling)
    if mixture:
        theirs = prompts if mixture.prompts is None else mixture.prompts
        if len(theirs) != len(prompts):
            raise ValueError(f"{len(theirs)} prompts for the teacher, {len(prompts)} for the student")
        check_room(mixture.teacher, theirs, how.sampling)
    with packed([model, mixture.teacher] if mixture else [model]):
        if (mixture is None or not mixture.along) and one_shape.possible(model):
            yield from refilled(model, prompts, numbers, how, mixture)
        else:
            yield from _together(model, prompts, numbers, how, mixture, spare)


def _together(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    numbers: Numbers,
    how: How,
    mixture: Mixture | None,
    spare: Numbers | None,
) -> Iterator[tuple[int, Response]]:
    """Batch by batch, of prompts of similar length."""
    device, horizon = next(model.parameters()).device, how.sampling.max_tokens
    theirs = mixture.prompts if mixture else None
    longest = [max(len(x[i]) for x in (prompts, theirs) if x is not None) for i in range(len(prompts))]
    for chunk in by_length(range(len(prompts)), lambda i: longest[i] + horizon, how.batch, how.budget):
        drawn = torch.from_numpy(numbers(chunk)).to(device)
        heads = None
        if mixture and mixture.groups is not None:
            groups = [mixture.groups[i] for i in chunk]
            heads = coins(how.seed, how.step, groups, horizon, mixture.alpha)
        other = None if theirs is None else [theirs[i] for i in chunk]
        ours, marks, cut = [prompts[i] for i in chunk], [], bool(mixture and mixture.early_end)
        again = None
        if mixture and mixture.teacher_top_k and spare is not None:
            again = torch.from_numpy(spare(chunk)).to(device)
            marks.append("replaced")
        if cut:
            marks.append("drifted")
        progress = Progress.of(ours, horizon, how.pad, device, other, marks, cut)
        batch = Batch(model, progress, drawn, heads, how, mixture, again)
        yield from zip(chunk, batch.sampled(), strict=True)


def check_room(model: PreTrainedModel, prompts: Sequence[np.ndarray], sampling: Sampling) -> None:
    """Raises UserError if the longest prompt and response are more than the model takes."""
    longest = max(map(len, prompts), default=0)
    what = f"a prompt has {longest} tokens and max_tokens is {sampling.max_tokens}"
    # The last token is sampled and not read.
    check_positions(model, longest + sampling.max_tokens - 1, what)
