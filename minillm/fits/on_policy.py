"""The on-policy phase in numbers: training/onpolicy.py, rollouts.py, rollout_losses.py and mini_batch.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from minillm.config.data import Data
from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.sampler import Sampler
from minillm.fits.passes import Loss
from minillm.fits.rows import Lengths, Prompts
from minillm.fits.sizes import Size
from minillm.fits.work import Draw, Part, Read, Work

# Keys of OnPolicy that the loss on samples depends on.
LOSS = (
    "objective", "single_step", "single_step_weights", "init_kl", "beta", "skew", "clip", "surrogate",
    "alpha_beta", "signal", "taid", "assistant", "token_weights", "also", "advantage", "baseline_top_k",
    "extrapolate",
)  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """The phase of one job: its settings, the student, the pair's teacher, and how long rows are.

    shown: the prompts of who teaches, if they are not the student's.
    """

    settings: OnPolicy
    student: Size
    pair: Size
    launch: Launch
    data: Data
    lengths: Lengths
    shown: Prompts | None = None

    @property
    def teacher(self) -> Size:
        """Who teaches; the pair's teacher measures the dev set in any case."""
        teaching = self.settings.teacher
        return self.pair if teaching is None or teaching.who == "pair" else self.student

    @property
    def response(self) -> float:
        """Tokens of a sample, on average."""
        return min(self.lengths.response, self.settings.max_tokens)

    @property
    def keeps(self) -> bool:
        """Whether the teacher's hidden states are kept for a collection."""
        s = self.settings
        return self.launch.teacher_cache and s.teacher_scores and s.keeps_teacher

    @property
    def drawn(self) -> int:
        """Rows of a collection that the student answers."""
        return round(self.settings.rollouts * self.settings.student_share)

    @property
    def texts(self) -> int:
        """Chunks of plain text of an optimizer step."""
        s = self.settings
        return min(s.lm_batch or s.batch, self.lengths.chunks) if s.lm_coef else 0

    def work(self, bare: Work) -> Work:
        """`bare`, which has the models, with what is done."""
        s, moves = self.settings, self.settings.teacher is not None and self.settings.teacher.who == "ema"
        lag = s.sampler.lag if s.sampler else 0
        ahead = s.collections if s.sampler and s.sampler.cached else 2 * lag
        return dataclasses.replace(
            bare,
            steps=s.steps,
            batch=s.batch * (1 + (s.teacher_texts is not None) + (s.gold is not None)) + self.texts,
            dropout=s.dropout,
            parts=tuple(self.parts()),
            # Without a share of the student nothing is sampled between evaluations.
            draws=tuple(draw for draw in self.draws() if draw.rows),
            reads=tuple(self.reads()),
            evaluations=s.evaluations,
            kept=(1 + lag) * s.rollouts * s.max_tokens if self.keeps else 0.0,
            # What waits is in each of the two checkpoints.
            cached=ahead * s.rollouts * self.response if self.keeps else 0.0,
            mean=self.student.trained if moves else 0,
            outputs=1,
        )

    def parts(self) -> list[Part]:
        """Rows of an optimizer step: samples, the teacher's answers, plain text and gold answers."""
        s, teacher, lengths, data = self.settings, self.teacher, self.lengths, self.data
        chunk, scored = data.corpus_length, s.teacher_scores
        # Equal losses take equal memory, whatever else differs between variants.
        of_loss = OnPolicy(**{name: getattr(s, name) for name in LOSS})
        parts = [
            Part(
                s.batch, lengths.prompt, self.response, data.max_prompt + s.max_tokens, s.max_tokens,
                Loss(teacher, 0.0, of_loss), reads=float(scored and not self.keeps), scored=scored,
                shown=self.shown,
            )
        ]  # fmt: skip
        if s.teacher_texts is not None:
            # The teacher reads its own answers again at each update.
            texts_of = OnPolicy(objective=s.teacher_texts.objective)
            parts.append(self._of_data(self.response, Loss(teacher, 0.0, texts_of), reads=1.0, scored=True))
        if self.texts:
            ratio = s.lm_kd_ratio
            loss = Loss(teacher if ratio else None, ratio)
            parts.append(Part(self.texts, 1, chunk - 1, chunk, chunk - 1, loss, float(ratio > 0), ratio > 0))
        if s.gold is not None:
            parts.append(self._of_data(lengths.response, Loss()))
        return parts

    def _of_data(self, response: float, loss: Loss, **how: Any) -> Part:
        """As many rows as a mini-batch has, with responses as long as those of the data."""
        most, longest = self.data.max_prompt, self.data.max_response
        return Part(self.settings.batch, self.lengths.prompt, response, most + longest, longest, loss, **how)

    def draws(self) -> list[Draw]:
        """Collections, and answers to the dev set."""
        s, sampler = self.settings, self.settings.sampler or Sampler()
        both = (self.student, self.teacher) if s.teacher_reads else (self.student,)
        rows: dict[str, Any] = {
            "prompt": self.lengths.prompt,
            "response": self.response,
            "longest": self.data.max_prompt,
            "horizon": s.max_tokens,
        }
        samples = Draw(
            both, self.drawn, s.collections, **rows, alpha=s.alpha, record=True,
            # Without a share the teacher reads whole responses, as if no coin fell.
            coins=s.coins if s.alpha or s.coins is not None or sampler.reads_along else 0,
            top_k=sampler.teacher_top_k, top_p=sampler.top_p, shown=self.shown,
        )  # fmt: skip
        return [samples, Draw((self.student,), self._dev, s.evaluations + 1, **rows)]

    @property
    def _dev(self) -> int:
        return min(self.settings.dev_rows or self.lengths.dev, self.lengths.dev)

    def reads(self) -> list[Read]:
        """The dev set at each look, by all that measure it, and collections that the teacher has not read."""
        s, looks = self.settings, self.settings.evaluations + 1
        usual = Prompts(self.lengths.prompt, self.data.max_prompt)
        most = max(s.max_tokens, self.data.max_response)

        def read(model: Size, rows: int, times: int, prompts: Prompts) -> Read:
            tokens, width = prompts.mean + self.response, prompts.longest + most
            return Read(model, rows, times, tokens, self.response, width)

        reads = [read(self.student, 2 * self._dev, looks, usual), read(self.pair, self._dev, looks, usual)]
        if s.teacher is not None:
            reads.append(read(self.teacher, self._dev, looks, self.shown or usual))
        unread = s.rollouts - self.drawn if s.teacher_reads else s.rollouts
        weighs = any(weights.of_teacher_entropy for weights in s.every_token_weights)
        if (self.keeps or weighs) and unread:
            reads.append(read(self.teacher, unread, s.collections, self.shown or usual))
        return reads
