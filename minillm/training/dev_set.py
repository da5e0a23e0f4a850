"""What training loops measure on the dev set, and the models they keep by it; no test set is ever used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.config.launch import Launch
from minillm.config.sections import Sampling
from minillm.data.batching import Batch, at_once, collate, least_padding, moved
from minillm.data.rows import Example, Rows
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.data.tokenizers import vocabulary_size
from minillm.files import whole_folder
from minillm.models.adapters import ADAPTER, is_adapted, save_adapter
from minillm.models.head import (
    head_of,
    logits_by_tile,
    response_hidden,
    response_tokens,
    response_values,
    token_logprobs,
)
from minillm.models.loading import decode, save_model, special_tokens
from minillm.runtime import checkpoints
from minillm.runtime.engine import Engine
from minillm.runtime.processes import World
from minillm.sampling.sample import sample
from minillm.scores import rouge_l
from minillm.training import selection

# From student and teacher logits to one value per token.
Divergence = Callable[[Tensor, Tensor], Tensor]


class Watch(Protocol):
    """What further looks at each token of `losses` (diagnosis.py)."""

    def begin(self, rows: Sequence[int], batch: Batch) -> None:
        """The batch that follows."""

    def of_tile(
        self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor, tile: slice
    ) -> list[Tensor]:
        """Values of a tile's tokens, (n,) each."""

    def add(self, values: Tensor) -> None:
        """The batch's values, (tokens, values)."""


# The "step" of dev samples: the same random numbers at every evaluation, none of them a rollout's.
DEV_STEP = 2**32 - 1


@dataclass(frozen=True)
class Dev:
    """Dev rows, the same at every evaluation, and how to answer them.

    `teacher`: the teacher's prompts, if they are not the student's.
    """

    examples: list[Example]
    records: list[dict[str, Any]]
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    vocabulary: int
    batch: int
    seed: int
    tokens: int = 0
    graphs: bool = True
    teacher: TeacherPrompts | None = None

    @classmethod
    def open(
        cls,
        data: Path,
        limit: int,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        launch: Launch,
        seed: int,
        teacher: TeacherPrompts | None = None,
    ) -> Dev:
        """The first `limit` dev rows of a data folder (0: all)."""
        rows = Rows.open(data, "dev")
        count = min(limit or len(rows), len(rows))
        return cls(
            [(rows.prompt(i), rows.response(i)) for i in range(count)],
            [rows.records[i] for i in range(count)],
            tokenizer,
            sampling,
            vocabulary_size(tokenizer),
            launch.eval_batch,
            seed,
            launch.eval_tokens,
            launch.cuda_graphs,
            teacher,
        )

    def theirs(self, examples: Sequence[Example]) -> list[Example] | None:
        """What the teacher reads in place of one response to each dev row; None if it reads the same."""
        return None if self.teacher is None else self.teacher.of("dev", self.ids, examples)

    @property
    def ids(self) -> list[int]:
        """Row ids, in order."""
        return [int(record["id"]) for record in self.records]


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    examples: Sequence[Example],
    dev: Dev,
    world: World,
    teacher: PreTrainedModel | None = None,
    divergences: Mapping[str, Divergence] = MappingProxyType({}),
    temperature: float = 1.0,
    kept: dict[int, Tensor] | None = None,
    theirs: Sequence[Example] | None = None,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Means over the response tokens of `examples`: "nll", and with a teacher each of `divergences` by name.

    Divergences compare the distributions at `temperature`; "nll" is the model's own.  `kept` holds the
    teacher's hidden states of each batch of these examples, on the CPU, between calls.  `theirs`: what the
    teacher reads in place of each example, if that is not the same.  `watch` gets the same logits, which
    changes no number here.
    """
    pad = special_tokens(dev.tokenizer)[1]
    read = examples if theirs is None else theirs
    swap = dev.teacher.swap if dev.teacher is not None else None

    def length(i: int) -> int:
        return len(examples[i][1]) + max(len(examples[i][0]), len(read[i][0]))

    mine = sorted(range(len(examples)), key=length)[world.rank :: world.size]
    wanted = dict(divergences) if teacher is not None else {}
    totals = dict.fromkeys(("nll", *wanted, "tokens"), 0.0)
    for number, rows in enumerate(least_padding(mine, length, dev.batch, at_once(world.device, dev.tokens))):
        part = collate([examples[i] for i in rows], pad).to(world.device)
        given = None
        if teacher is not None:
            if kept is not None and number in kept:
                states = moved(kept[number], world.device)
            else:
                other = part if theirs is None else collate([theirs[i] for i in rows], pad).to(world.device)
                states = response_hidden(teacher, other)
                if kept is not None:
                    kept[number] = states.cpu()
            given = logits_by_tile(states, head_of(teacher, dev.vocabulary, temperature, swap))
        tokens = response_tokens(part)
        if watch is not None:
            watch.begin(rows, part)

        def measures(logits: Tensor, tile: slice, given: Any = given, tokens: Tensor = tokens) -> Tensor:
            columns = [-token_logprobs(logits, tokens[tile])]
            if given is not None:
                teacher_logits = given(tile)
                columns += [function(logits / temperature, teacher_logits) for function in wanted.values()]
                if watch is not None:
                    columns += watch.of_tile(logits / temperature, teacher_logits, tokens[tile], tile)
            return torch.stack(columns, dim=1)

        values = response_values(model, part, dev.vocabulary, measures)
        # Contiguous, so that the order of the sums is the same with and without a watch.
        sums = values[:, : 1 + len(wanted)].contiguous().double().sum(0).tolist()
        if watch is not None:
            watch.add(values[:, 1 + len(wanted) :])
        totals["tokens"] += part.mask.sum().item()
        for name, value in zip(("nll", *wanted), sums, strict=True):
            totals[name] += value
    parts = world.gather(totals)
    every = {name: sum(part[name] for part in parts) for name in totals}
    return {name: value / every["tokens"] for name, value in every.items() if name != "tokens"}


@dataclass(frozen=True)
class DevAnswers:
    """A model's responses to the dev prompts, with their scores."""

    examples: list[Example]
    rouge: float
    mean_length: float
    finished: float


def answer(model: PreTrainedModel, dev: Dev, world: World) -> DevAnswers:
    """Sample one response to each dev prompt and score it by ROUGE-L; the ranks share the prompts."""
    mine = list(range(len(dev.examples)))[world.rank :: world.size]
    eos, pad = special_tokens(dev.tokenizer)
    samples = sample(
        model,
        [dev.examples[i][0] for i in mine],
        [int(dev.records[i]["id"]) for i in mine],
        dev.sampling,
        seed=dev.seed,
        step=DEV_STEP,
        ends=[eos],
        pad=pad,
        vocabulary=dev.vocabulary,
        batch=dev.batch,
        budget=dev.tokens,
        graphs=dev.graphs,
    )
    scored = [
        (i, r.tokens, r.finished, rouge_l(decode(dev.tokenizer, r.tokens), dev.records[i]["references"]))
        for i, r in zip(mine, samples, strict=True)
    ]
    every = sorted((entry for part in world.gather(scored) for entry in part), key=lambda entry: entry[0])
    return DevAnswers(
        [(dev.examples[i][0], tokens) for i, tokens, _, _ in every],
        float(np.mean([score for *_, score in every])),
        float(np.mean([len(tokens) for _, tokens, _, _ in every])),
        float(np.mean([finished for _, _, finished, _ in every])),
    )


class Candidates:
    """The models that each rule would choose so far, by step, kept with the checkpoints until the end."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, rules: Sequence[str]) -> None:
        self.engine, self.tokenizer, self.rules = engine, tokenizer, rules

    def folder(self, step: int) -> Path:
        return self.engine.folder / "candidates" / f"step-{step:07d}"

    def chosen(self, history: list[dict[str, Any]]) -> set[int]:
        """The steps that the rules choose; none while every evaluation is NaN or infinite."""
        usable = [rule for rule in self.rules if selection.finite(history, selection.RULES[rule][0])]
        return {selection.choose(history, rule)["step"] for rule in usable}

    def offer(self, history: list[dict[str, Any]]) -> None:
        """Keep the current model if a rule chooses the last entry; earlier choices stay until `prune`."""
        step = history[-1]["step"]
        if step not in self.chosen(history):
            return
        state = self.engine.weights()
        model = self.engine.model
        if self.engine.world.rank == 0:
            with whole_folder(self.folder(step)) as partial:
                if is_adapted(model):
                    (partial / ADAPTER).mkdir()
                    save_adapter(model, partial / ADAPTER, state)
                else:
                    save_model(model, self.tokenizer, partial, state)
        self.engine.world.barrier()

    def prune(self, history: list[dict[str, Any]]) -> None:
        """Remove models that no checkpoint's part of `history` chooses.

        A run may have to resume from any checkpoint, and then needs what that one chose.
        """
        if self.engine.world.rank == 0:
            parts = (
                [e for e in history if e["step"] <= step] for step in checkpoints.steps(self.engine.folder)
            )
            kept = {self.folder(step) for part in parts if part for step in self.chosen(part)}
            for path in self.folder(0).parent.glob("step-*"):
                if path not in kept:
                    shutil.rmtree(path)

    def export(self, rule: str, history: list[dict[str, Any]], folder: Path) -> None:
        """Copy the model that `rule` chooses, selection.json and the run's metrics into `folder`.

        Of a model with an adapter only that, in the folder ADAPTER.
        """
        shutil.copytree(self.folder(selection.choose(history, rule)["step"]), folder, dirs_exist_ok=True)
        text = json.dumps(selection.evidence(history, rule), indent=1)
        (folder / "selection.json").write_text(text + "\n", encoding="utf-8")
        shutil.copy(self.engine.folder / "metrics.jsonl", folder / "metrics.jsonl")
