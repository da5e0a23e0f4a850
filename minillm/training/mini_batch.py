"""A mini-batch of a collection: what its loss is made from, and the loss of each of its micro-batches.

MiniLLM's two terms or one divergence on samples, cross-entropy on the gold answers of the same prompts, a
divergence on the teacher's answers, and a loss on plain text; one pass of the student for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minillm.config.onpolicy import OnPolicy
from minillm.data.batching import collate, moved
from minillm.data.rows import Corpus, Example
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.models.head import (
    head_of,
    logits_by_tile,
    response_hidden,
    response_losses,
    response_tokens,
)
from minillm.models.loading import special_tokens
from minillm.models.tiled_loss import Compilable, Terms
from minillm.runtime.engine import Losses
from minillm.training.dev_set import Dev
from minillm.training.rollouts import Rollouts
from minillm.training.sample_loss import AnswerLoss, SampleLoss
from minillm.training.supervised_loss import token_loss
from minillm.training.teaching import Panel, as_teacher, by_segment

# The place in the collection of a sample, of a prompt's gold answer or of the teacher's, or a chunk's in
# the corpus.
Row = tuple[Literal["sample", "gold", "answer", "text"], int]


@dataclass(frozen=True)
class Task:
    """What a loss needs besides student and samples; `anchor` is the initial student, if it is needed.

    `teacher` is who teaches; `dev` knows what it reads.  `panel`: further teachers, of some categories.
    `pair`: the pair's teacher and its usual prompts, by which the dev set is measured, if another teaches.
    `initial`: the initial student, if the KL to it is measured at dev evaluations; no loss uses it.
    """

    teacher: PreTrainedModel
    anchor: PreTrainedModel | None
    corpus: Corpus
    dev: Dev
    settings: OnPolicy
    seed: int
    initial: PreTrainedModel | None = None
    # The teacher's answers by row id, if the settings have `teacher_texts`.
    answers: Mapping[int, np.ndarray] | None = None
    panel: Panel | None = None
    pair: tuple[PreTrainedModel, TeacherPrompts | None] | None = None

    @property
    def swap(self) -> tuple[int, int] | None:
        """The end tokens of student and teacher, if they differ."""
        return self.dev.teacher.swap if self.dev.teacher is not None else None


@dataclass(frozen=True)
class LossInputs:
    """Constants of a micro-batch's loss: (tokens,) in the order of the logits; frozen logits by tile."""

    tokens: Tensor
    old_logprobs: Tensor
    weights: Tensor
    advantages: Tensor
    teacher: Callable[[slice], Tensor] | None
    initial: Callable[[slice], Tensor] | None
    # Token weights of the objective and of each further term.
    factors: list[Tensor | None]


def frozen_model_logits(
    model: PreTrainedModel,
    examples: Sequence[Example],
    task: Task,
    device: torch.device,
    temperature: float,
    swap: tuple[int, int] | None = None,
) -> Callable[[slice], Tensor]:
    """Logits of a frozen model, a tile of the examples' response tokens at a time; `swap` as in `head_of`."""
    batch = collate(examples, special_tokens(task.dev.tokenizer)[1]).to(device)
    head = head_of(model, task.dev.vocabulary, temperature, swap)
    with as_teacher(model, task.settings):
        return logits_by_tile(response_hidden(model, batch), head)


@dataclass(frozen=True)
class MiniBatch:
    """One mini-batch of a collection and its plain text: what every micro-batch of every rank shares.

    `advantages`, `weights` (of importance) and each of `factors`, the first of which is in the advantages
    already, are (rollouts, time); the loss on samples is divided by `denominator`, that on gold answers by
    `gold_denominator`, that on text by `text_denominator`.  `shares`: what is left of the coefficients of
    further terms, if some fall with the steps.  `balance` is DistiLLM-2's b, if the teacher's answers stand
    next to the samples.
    """

    task: Task
    rollouts: Rollouts
    advantages: Tensor
    weights: Tensor
    tokens: float
    denominator: float
    text_denominator: float
    device: torch.device
    compiled: bool
    # TAID's t.
    target: float | None = None
    factors: Sequence[Tensor | None] = ()
    gold_denominator: float = 1.0
    shares: Sequence[float] | None = None
    balance: float | None = None

    def examples(self, part: Sequence[Row]) -> list[Example]:
        """Prompts and responses; a text's first token is its prompt, so that all others are targets."""
        rollouts, chunk = self.rollouts, self.task.corpus.chunk
        return [
            (chunk(i)[:1], chunk(i)[1:]) if kind == "text" else (rollouts.prompts[i], self.response(kind, i))
            for kind, i in part
        ]

    def response(self, kind: str, i: int) -> np.ndarray:
        """The sample of a row of the collection, or the gold answer or the teacher's to its prompt."""
        if kind == "answer" and self.task.answers is not None:
            return self.task.answers[self.rollouts.ids[i]]
        if kind == "gold" and self.rollouts.gold is not None:
            return self.rollouts.gold[i]
        return self.rollouts.responses[i]

    def theirs(self, samples: Sequence[Row]) -> list[Example]:
        """What the teacher reads of samples: its own prompts, if it has any, and the same responses."""
        prompts = self.rollouts.teacher_prompts
        if prompts is None:
            return self.examples(samples)
        return [(prompts[i], self.response(kind, i)) for kind, i in samples]

    def length(self, row: Row) -> int:
        prompt, response = self.examples([row])[0]
        longest = len(prompt)
        # A prompt that shows the teacher more may be far longer than the student's.
        if row[0] == "sample" and self.task.settings.teacher is not None:
            longest = max(longest, len(self.theirs([row])[0][0]))
        return longest + len(response)

    def sorted_samples(self, part: Sequence[Row]) -> list[Row]:
        """The samples of a part, those of one teacher in a row."""
        samples, panel = [row for row in part if row[0] == "sample"], self.task.panel
        if panel is None:
            return samples
        return sorted(samples, key=lambda row: panel.teacher_of("train", self.rollouts.ids[row[1]]))

    def teacher_logits(self, samples: Sequence[Row]) -> Callable[[slice], Tensor]:
        """Logits of the teacher, or of each sample's own, after the teacher's prompts, by tile."""
        task, panel, rollouts = self.task, self.task.panel, self.rollouts

        def read(model: PreTrainedModel, part: Sequence[Row]) -> Callable[[slice], Tensor]:
            return frozen_model_logits(
                model, self.theirs(part), task, self.device, task.settings.temperature, task.swap
            )

        if panel is None:
            return read(task.teacher, samples)
        parts = panel.grouped("train", samples, lambda row: rollouts.ids[row[1]])
        return by_segment(
            [(read(model, part), sum(len(rollouts.responses[i]) for _, i in part)) for model, part in parts]
        )

    def inputs(self, samples: Sequence[Row], tokens: Tensor) -> LossInputs:
        """`tokens` are those of the samples' responses."""
        s, rollouts, rows = self.task.settings, self.rollouts, [i for _, i in samples]
        valid = rollouts.mask[rows].bool()

        def cut(values: Tensor) -> Tensor:
            """(tokens,), in the order of the logits."""
            return moved(values[rows][valid], self.device)

        teacher = None
        if s.teacher_scores:
            if rollouts.teacher_hidden is None:
                teacher = self.teacher_logits(samples)
            # Kept when the samples were drawn.
            else:
                hidden = moved(torch.cat([rollouts.teacher_hidden[i] for i in rows]), self.device)
                head = head_of(self.task.teacher, self.task.dev.vocabulary, s.temperature, self.task.swap)
                teacher = logits_by_tile(hidden, head)
        initial = None
        if self.task.anchor is not None:
            initial = frozen_model_logits(
                self.task.anchor, self.examples(samples), self.task, self.device, s.temperature
            )
        return LossInputs(
            tokens,
            cut(rollouts.student_logprobs),
            cut(self.weights),
            cut(self.advantages),
            teacher,
            initial,
            [None if by is None else cut(by) for by in self.factors],
        )

    def on_samples(self, inputs: LossInputs, sums: dict[str, Tensor]) -> Compilable:
        """The loss of a tile of sampled tokens; its terms are added to `sums`."""
        # A tensor, since each other number would be compiled again, made on the device (see objectives.py).
        target = None
        if self.target is not None:
            target = torch.full((), self.target, dtype=torch.float64, device=self.device)
        shares = None
        if self.shares is not None:
            shares = torch.stack(
                [torch.full((), share, dtype=torch.float64, device=self.device) for share in self.shares]
            )

        def constants(tile: slice) -> tuple[Tensor | None, ...]:
            frozen = (logits(tile) if logits else None for logits in (inputs.teacher, inputs.initial))
            return (
                inputs.tokens[tile],
                inputs.old_logprobs[tile],
                inputs.weights[tile],
                inputs.advantages[tile],
                *frozen,
                target,
                shares,
                *(None if by is None else by[tile] for by in inputs.factors),
            )

        def note(terms: Terms) -> None:
            losses, counts = terms
            logged = {name: value / self.denominator for name, value in losses.items()}
            if "outside" in counts:
                logged["clip_fraction"] = counts["outside"] / self.tokens
            for name, value in logged.items():
                sums[name] = sums[name] + value if name in sums else value

        loss = SampleLoss(self.task.settings, tuple(self.task.settings.further_terms()))
        return Compilable(loss, constants, note, self.compiled)

    def on_answers(self, answers: Sequence[Row], tokens: Tensor, sums: dict[str, Tensor]) -> Compilable:
        """The loss of a tile of the teacher's answers, whose tokens are `tokens`."""
        s, examples = self.task.settings, self.theirs(answers)
        theirs = frozen_model_logits(
            self.task.teacher, examples, self.task, self.device, s.temperature, self.task.swap
        )
        factors: Tensor | None = None
        if s.token_weights is not None and s.token_weights.per_response:
            lengths = torch.tensor([len(response) for _, response in examples])
            factors = moved((1.0 / lengths.double()).repeat_interleave(lengths), self.device)

        def constants(tile: slice) -> tuple[Tensor | None, ...]:
            return tokens[tile], theirs(tile), None if factors is None else factors[tile]

        def note(terms: Terms) -> None:
            value = terms[0]["teacher_texts"] / self.denominator
            sums["teacher_texts"] = sums["teacher_texts"] + value if "teacher_texts" in sums else value

        return Compilable(AnswerLoss(s.on_teacher_texts()), constants, note, self.compiled)

    def on_texts(self, texts: Sequence[Row], tokens: Tensor) -> Compilable:
        """The loss of a tile of plain text, at temperature 1."""
        ratio, theirs = self.task.settings.lm_kd_ratio, None
        if ratio:
            theirs = frozen_model_logits(self.task.teacher, self.examples(texts), self.task, self.device, 1.0)
        return token_loss(tokens, theirs, ratio, self.compiled)

    def loss(self, model: nn.Module, part: Sequence[Row]) -> Losses:
        """A micro-batch's share of the loss, from one pass of the student, and its terms by name to log."""
        s, vocabulary, sums = self.task.settings, self.task.dev.vocabulary, dict[str, Tensor]()
        samples = self.sorted_samples(part)
        golds, answers, texts = (
            [row for row in part if row[0] == kind] for kind in ("gold", "answer", "text")
        )
        pad = special_tokens(self.task.dev.tokenizer)[1]
        batch = collate(self.examples([*samples, *golds, *answers, *texts]), pad).to(self.device)
        tokens = response_tokens(batch)
        # Where the tokens of each kind end.
        first, second, third = accumulate(
            sum(len(self.response(*row)) for row in rows) for rows in (samples, golds, answers)
        )
        own, usual = head_of(model, vocabulary, s.temperature), head_of(model, vocabulary)
        asked, weights, names = [], [], []
        if samples:
            asked.append((slice(first), self.on_samples(self.inputs(samples, tokens[:first]), sums), own))
            weights.append((1 if self.balance is None else self.balance) / self.denominator)
            names.append("")
        if golds and s.gold is not None:
            function = token_loss(tokens[first:second], None, 0.0, self.compiled)
            asked.append((slice(first, second), function, usual))
            weights.append(s.gold.coefficient / self.gold_denominator)
            names.append("gold")
        if answers and self.balance is not None:
            function = self.on_answers(answers, tokens[second:third], sums)
            asked.append((slice(second, third), function, own))
            weights.append((2 - self.balance) / self.denominator)
            names.append("")
        if texts:
            asked.append((slice(third, None), self.on_texts(texts, tokens[third:]), usual))
            weights.append(s.lm_coef / self.text_denominator)
            names.append("plain_text")
        losses = [
            weight * loss for weight, loss in zip(weights, response_losses(model, batch, asked), strict=True)
        ]
        # Those of samples are there by their terms.
        sums |= {name: loss.detach() for name, loss in zip(names, losses, strict=True) if name}
        return torch.stack(losses).sum(), sums
