"""A batch whose rows begin together: one model, or student and teacher, position by position."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.data.batching import at_once
from minillm.models.head import head_of
from minillm.models.onednn_layout import packed_head
from minillm.sampling import one_shape
from minillm.sampling.draw import Replacement, draw_and_record
from minillm.sampling.early_end import Drift
from minillm.sampling.kv_cache import Decoder, compact_at, look_every
from minillm.sampling.logit_filters import Filters
from minillm.sampling.one_shape import OneShape
from minillm.sampling.progress import Context, Progress
from minillm.sampling.response import How, Mixture, Response, broken, responses
from minillm.sampling.unread import Unread


def decoder_of(
    model: PreTrainedModel, context: Context, how: How, graphs: bool, swap: tuple[int, int] | None = None
) -> Decoder | OneShape:
    """A decoder with room for the batch."""
    rows, length = context.history.shape
    if one_shape.possible(model):
        head = packed_head(head_of(model, how.vocabulary, how.sampling.temperature, swap))
        return OneShape(model, head, rows, length, graphs)
    return Decoder(model, how.vocabulary, how.sampling.temperature, length, swap)


class Batch:
    """One batch: `uniform` (size, horizon) draws its tokens; `heads` (size, horizon), where the teacher does.

    `heads` is None without coins: the teacher, if there is one, reads every position.  `spare`, like
    `uniform`, draws what the teacher puts in the place of tokens, if it may.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        progress: Progress,
        uniform: Tensor,
        heads: np.ndarray | None,
        how: How,
        mixture: Mixture | None,
        spare: Tensor | None = None,
    ) -> None:
        self.model, self.progress, self.uniform, self.how = model, progress, uniform, how
        self.device, self.horizon = uniform.device, uniform.shape[1]
        self.filters = Filters(how.sampling, progress.student.prompts)
        self.alpha = mixture.alpha if mixture else 0.0
        self.spare, self.top_k = spare, mixture.teacher_top_k if mixture else 0
        self.drift = None
        if mixture and mixture.early_end:
            self.drift = Drift(mixture.early_end, len(uniform), self.device)
        # What is read position by position, with the first column that each cache holds.
        self.readers = [(decoder_of(model, progress.student, how, how.graphs), progress.student)]
        self.unread, self.heads = None, heads
        if mixture:
            # By coins the teacher reads chunks, of whatever length.
            graphs = how.graphs and heads is None
            other = decoder_of(mixture.teacher, progress.teacher, how, graphs, how.swap(mixture))
            if heads is None:
                self.readers.append((other, progress.teacher))
            else:
                head, record = self.readers[0][0].head, how.record
                self.unread = Unread(progress, head, mixture.teacher, other, heads, self.alpha, record)
        self.starts = [0] * len(self.readers)
        # (rows, positions, the teacher's hidden states).
        self.kept: list[tuple[Tensor, Tensor | int, Tensor]] = []
        # Rows of the caches -> rows of the batch; the same on the host, and which still run.
        self.alive = torch.arange(len(uniform), device=self.device)
        self.rows, self.running = np.arange(len(uniform)), np.ones(len(uniform), dtype=bool)
        # Whether logits of each of these rows were NaN.
        self.broken = torch.zeros(len(uniform), dtype=torch.bool, device=self.device)

    def sampled(self) -> list[Response]:
        """The responses, in order."""
        states = self._read_prompts()
        for t in range(self.horizon):
            chosen, stop = self._draw(t, states)
            still = self.progress.put(t, self.alive, chosen.clamp(min=0), self.how.ends, stop)
            self.broken |= chosen < 0
            last = t + 1 == self.horizon
            if last or (t + 1) % look_every(self.device) == 0:
                self._look(still)
                if last or not self.running.any():
                    break
                self._drop(still)
            states = self._read(t)
        if self.unread is not None:
            self.unread.finish()
            if self.progress.records.isnan().any():
                raise broken(self.unread.teacher)
        return responses(self.progress, self.how.record, self.unread.kept if self.unread else self.kept)

    def _read_prompts(self) -> list[Tensor]:
        states = []
        for decoder, c in self.readers:
            padded = c.history[:, : c.width], c.attention[:, : c.width], c.places[:, : c.width]
            read = decoder.prompts(*padded, list(map(len, c.prompts)), at_once(self.device, 0))
            states.append(read[:, -1])
        return states

    def _draw(self, t: int, states: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """(a token for each row that is alive, -1 if its logits are NaN; which rows end with it, if any may).

        What the position's records hold is stored.
        """
        alive, uniform = self.alive, self.uniform[self.alive, t]
        if self.unread is not None and self.heads is not None:
            running = self.rows[self.running]
            asked = int(self.heads[running, t].sum())
            return self.unread.draw(t, alive, states[0], uniform, asked, len(running)), None
        logits = [decoder.head.logits(x) for (decoder, _), x in zip(self.readers, states, strict=True)]
        filtered = self.filters(alive, logits[0]) if self.filters else None
        replacement = None if self.spare is None else Replacement(self.top_k, self.spare[alive, t])
        drawn = draw_and_record(logits, self.alpha, uniform, self.how.record, filtered, replacement)
        chosen, marks, stop = drawn.tokens, self.progress.marks, None
        if drawn.values is not None:
            self.progress.records[:, alive, t] = drawn.values.to(self.progress.records.dtype)
        if drawn.replaced is not None:
            marks["replaced"][alive, t] = drawn.replaced
        if self.drift is not None:
            marks["drifted"][alive, t], stop = self.drift.seen(alive, *logits)
        if self.how.record and len(states) > 1:
            self.kept.append((alive, t, states[1]))
        if self.filters:
            self.filters.add(alive, chosen)
        return chosen, stop

    def _look(self, still: Tensor) -> None:
        """Who has not ended, and whether something could not be drawn: where the host waits."""
        self.running, nan = torch.stack([still, self.broken]).cpu().numpy()
        if nan.any():
            raise broken(self.model)

    def _drop(self, still: Tensor) -> None:
        """Take rows that have ended out of the caches, once there are many."""
        if self.running.sum() > compact_at(self.device) * len(self.running):
            return
        self.alive, self.broken, rows = self.alive[still], self.broken[still], still.nonzero().squeeze(-1)
        self.rows, self.running = self.rows[self.running], self.running[self.running]
        croppable = all(decoder.croppable for decoder, _ in self.readers)
        for i, (decoder, c) in enumerate(self.readers):
            # The longest prompt of those that are left.
            longest = max(len(c.prompts[row]) for row in self.rows.tolist())
            first = c.width - longest if croppable else self.starts[i]
            decoder.keep(rows, first - self.starts[i])
            self.starts[i] = first

    def _read(self, t: int) -> list[Tensor]:
        """Hidden states after the tokens of position `t`, (rows alive, width) of each reader."""
        states = []
        for (decoder, c), start in zip(self.readers, self.starts, strict=True):
            end = c.width + t
            tokens, visible = c.history[self.alive, end : end + 1], c.attention[self.alive, start : end + 1]
            states.append(decoder.hidden(tokens, visible, c.places[self.alive, end : end + 1])[:, -1])
        return states
