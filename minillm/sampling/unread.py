"""The teacher's part in sampling by coins: it reads when it is to draw, then all that it has not read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.data.batching import at_once, collate, least_padding
from minillm.models.head import response_hidden
from minillm.models.tiled_loss import Head, tile_of, tiles
from minillm.sampling.draw import draw, token_values
from minillm.sampling.kv_cache import COMPACT_AT, Decoder
from minillm.sampling.progress import Progress


class Unread:
    """Which positions the teacher has not read, and the student's hidden states there if they are recorded.

    `heads` (size, horizon) bool: where the teacher draws.  A chunk's logits are made tile by tile, those of
    the student for the second time: its first ones are gone once a token is drawn.
    """

    def __init__(
        self,
        progress: Progress,
        student: Head,
        teacher: PreTrainedModel,
        decoder: Decoder,
        heads: np.ndarray,
        alpha: float,
        record: bool,
    ) -> None:
        self.progress, self.student, self.alpha, self.record = progress, student, alpha, record
        self.context = progress.teacher
        self.teacher, self.decoder = teacher, decoder
        self.device = progress.lengths.device
        self.heads = torch.from_numpy(heads).to(self.device)
        # Rows of the teacher's cache -> rows of the batch; it drops them later than the student does.
        self.rows = torch.arange(len(heads), device=self.device)
        # The first column that its cache holds; columns read; the first position without its hidden states.
        self.start = self.columns = self.position = 0
        # (rows, hidden states) of each position from `position` on.
        self.students: list[tuple[Tensor, Tensor]] = []
        # What was read last, (rows, first position, the student's and the teacher's hidden states): it is
        # recorded once its last token is known.
        self.pending: tuple[Tensor, int, Tensor, Tensor] | None = None
        # (rows, positions, the teacher's hidden states) of what was recorded.
        self.kept: list[tuple[Tensor, Tensor | int, Tensor]] = []

    def asked(self, t: int, alive: Tensor, running: Tensor) -> Tensor:
        """How many of the rows `alive` that are still `running` the teacher draws for, a scalar."""
        return (self.heads[alive, min(t, self.heads.shape[1] - 1)] & running).sum()

    def draw(
        self, t: int, alive: Tensor, hidden: Tensor, uniform: Tensor, asked: int, running: int
    ) -> Tensor:
        """The tokens of position `t` of the rows `alive`, of which `running` have not ended.

        `hidden` are the student's states there; the teacher draws for `asked` of the running rows.
        """
        if self.record:
            self.students.append((alive, hidden))
        return draw(self._logits(t, alive, hidden, asked, running).softmax(-1), uniform)

    def _logits(self, t: int, alive: Tensor, hidden: Tensor, asked: int, running: int) -> Tensor:
        if not asked:
            return self.student.logits(hidden)
        states = self._read(t + 1)
        # Rows that the teacher has dropped have finished: what is drawn for them is ignored.
        place = torch.zeros(len(self.heads), dtype=torch.long, device=self.device)
        place[self.rows] = torch.arange(len(self.rows), device=self.device)
        teacher = self.decoder.head.logits(states[place[alive], -1])
        if asked == running:
            return teacher
        return torch.where(self.heads[alive, t, None], teacher, self.student.logits(hidden))

    def finish(self) -> None:
        """Read and record what is unread when all rows have ended."""
        if not self.record:
            return
        end = int(self.progress.lengths.max())
        if self.position < end:
            if self.columns:
                self._read(end)
            else:
                self._read_whole()
        self._settle()

    def _read(self, end: int) -> Tensor:
        """Read up to the state of position `end` - 1; all new states (rows, positions, width)."""
        self._settle()
        context, budget = self.context, at_once(self.device, 0)
        column = context.width + end - 1
        if not self.columns:
            last = end if self.record else 1
            tokens, visible, places = (
                x[:, :column] for x in (context.history, context.attention, context.places)
            )
            lengths = [len(prompt) + end - 1 for prompt in context.prompts]
            states = self.decoder.prompts(tokens, visible, places, lengths, budget, last)
        else:
            self._drop()
            rows = self.rows
            step = max(1, budget // len(rows)) if budget else column - self.columns
            pieces = []
            for first in range(self.columns, column, step):
                until = min(first + step, column)
                tokens, places = (x[rows, first:until] for x in (context.history, context.places))
                visible = context.attention[rows, self.start : until]
                pieces.append(self.decoder.hidden(tokens, visible, places, until - first))
            states = torch.cat(pieces, 1)
        if self.record:
            self.pending = self.rows, self.position, self._students(end), states
        self.students, self.position, self.columns = [], end, column
        return states

    def _drop(self) -> None:
        """Take rows that have finished, and of which nothing is unread, out of the teacher's cache."""
        useful = ~self.progress.finished[self.rows]
        if self.record:
            useful |= self.progress.lengths[self.rows] > self.position
        if int(useful.sum()) > COMPACT_AT * len(self.rows):
            return
        keep, start = useful.nonzero().squeeze(-1), self.start
        self.rows = self.rows[keep]
        if self.decoder.croppable:
            self.start = int(self.context.attention[self.rows].argmax(-1).min())
        self.decoder.keep(keep, self.start - start)

    def _students(self, end: int) -> Tensor:
        """The student's hidden states of the unread positions before `end`, (size, positions, width)."""
        hidden = self.students[0][1]
        states = hidden.new_zeros(len(self.heads), end - self.position, hidden.shape[-1])
        for i, (alive, hidden) in enumerate(self.students):
            states[alive, i] = hidden
        return states

    def _read_whole(self) -> None:
        """One pass over prompts and responses, for no coin has fallen for the teacher."""
        context, lengths = self.context, self.progress.lengths.tolist()
        tokens = context.history[:, context.width :].cpu().numpy()
        both = [(x, tokens[i, : lengths[i]]) for i, x in enumerate(context.prompts)]
        students = self._students(max(lengths))
        for part in least_padding(
            range(len(both)), lambda i: sum(map(len, both[i])), len(both), at_once(self.device, 0)
        ):
            batch = collate([both[i] for i in part], self.progress.pad).to(self.device)
            rows = torch.tensor([i for i in part for _ in range(lengths[i])], device=self.device)
            positions = torch.tensor([t for i in part for t in range(lengths[i])], device=self.device)
            self._record(rows, positions, students[rows, positions], response_hidden(self.teacher, batch))

    def _settle(self) -> None:
        """Record what was read last, of rows that had not ended before."""
        if self.pending is None:
            return
        rows, first, students, states = self.pending
        self.pending = None
        positions = first + torch.arange(states.shape[1], device=self.device)
        i, t = (positions < self.progress.lengths[rows, None]).nonzero(as_tuple=True)
        self._record(rows[i], positions[t], students[rows[i], t], states[i, t])

    def _record(self, rows: Tensor, positions: Tensor, students: Tensor, teachers: Tensor) -> None:
        """The values of tokens (n,) from both models' hidden states (n, width)."""
        tokens = self.context.history[rows, self.context.width + positions].unsqueeze(-1)
        records = self.progress.records
        for part in tiles(len(rows), self.student.vocabulary, tile_of(self.device)):
            student = self.student.logits(students[part]).log_softmax(-1)
            teacher = self.decoder.head.logits(teachers[part]).log_softmax(-1)
            q, at = student.exp(), tokens[part]
            mixture = torch.lerp(q.gather(-1, at), teacher.gather(-1, at).exp(), self.alpha)
            values = token_values(student, teacher, q, mixture, at)
            records[:, rows[part], positions[part]] = values.to(records.dtype)
        self.kept.append((rows, positions, teachers))
