"""Seconds of a job on a machine: operations, weights that decoding reads, kernels, links and disk.

Published figures times an assumed share (machines.py), so they tell an afternoon from a week, not ten hours
from eleven.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from minillm.fits import flops, passes
from minillm.fits.machines import BANDWIDTH, DISK, LINK, STARTUP, Machine
from minillm.fits.sizes import Size, bytes_of
from minillm.fits.work import Draw, Work
from minillm.runtime import saving

# A response in a journal: text and tokens (data.md), and its prompt and references next to it.
ANSWER = 3000


@dataclass(frozen=True)
class Seconds:
    """Seconds of each kind of work.  start: imports, and models from and to the disk."""

    update: float = 0.0
    sampling: float = 0.0
    reading: float = 0.0
    links: float = 0.0
    saving: float = 0.0
    start: float = 0.0

    @property
    def hours(self) -> float:
        """All of them."""
        parts = (self.update, self.sampling, self.reading, self.links, self.saving, self.start)
        return sum(parts) / 3600


def seconds(work: Work, machine: Machine) -> Seconds:
    """Of `work` on as many of these machines as it has processes; all processes share a CPU."""
    processes = work.launch.processes
    if machine.device == "cpu":
        machine = machine.shared(processes)
    speed = machine.flops[work.precision] * machine.share * processes
    recomputed = work.launch.gradient_checkpointing
    updates = work.steps * sum(flops.update(part, work.student, recomputed) for part in work.parts)
    number = bytes_of(work.precision)
    models = sum(model.parameters for model in (work.student, *work.frozen))
    working = Seconds(
        # The optimizer reads and writes weights, gradient and both moments.
        update=updates / speed + work.steps * _optimizer(work, machine),
        sampling=sum(d.times * _draw(d, work, machine) for d in work.draws),
        reading=sum(r.times * flops.score(r) for r in work.reads) / speed,
        links=work.steps * _links(work) / (machine.link * LINK) if processes > 1 else 0.0,
    )
    return dataclasses.replace(
        working,
        saving=saves(work, working.hours) * state_bytes(work) / DISK,
        start=STARTUP + number * (models + work.outputs * work.student.parameters) / DISK,
    )


def _optimizer(work: Work, machine: Machine) -> float:
    own = work.student.trained / (work.launch.processes if work.launch.zero else 1)
    return own * 7 * 4 / (machine.bandwidth * BANDWIDTH)


def _draw(draw: Draw, work: Work, machine: Machine) -> float:
    """Batches one after the other; a position takes what is slowest: operations, memory or kernels."""
    launch, number = work.launch, bytes_of(work.precision)
    own = -(-draw.rows // launch.processes)
    rows = min(launch.eval_batch, own)
    if launch.eval_tokens:
        rows = max(1, min(rows, launch.eval_tokens // draw.width))
    batches = -(-own // rows)
    contexts = [prompts.mean + draw.response / 2 for prompts in draw.prompts]
    # Share of the positions, times the output matrix is applied, model, positions before it.
    of_each = list(zip(draw.shares(rows), flops.heads(draw), draw.models, contexts, strict=True))
    read = sum(share * number * (m.matrices + m.head + rows * m.cache * n) for share, _, m, n in of_each)
    products = sum(
        flops.linear(m, rows) + flops.attention(m, rows, n) + times * flops.head(m, rows)
        for _, times, m, n in of_each
    )
    speed = machine.flops[work.precision] * machine.share
    position = max(
        products / speed,
        read / (machine.bandwidth * BANDWIDTH),
        sum(share * _kernels(m) for share, _, m, _ in of_each) * machine.kernel,
    )
    first = sum(flops.read(m, rows, p.mean) for m, p in zip(draw.models, draw.prompts, strict=True)) / speed
    return batches * (first + draw.horizon * position)


def _kernels(size: Size) -> float:
    """Of a position: the blocks', and some thirty for the logits and the draw."""
    return passes.kernels(size) + 30


def _links(work: Work) -> float:
    """Bytes that a process sends in one optimizer step."""
    launch, number = work.launch, bytes_of(work.precision)
    rows = work.batch / launch.processes
    micro = max(1.0, rows / launch.micro_batch)
    weights, gradients = number * work.student.parameters, number * work.student.trained
    # Gradients are reduced at every micro-batch from ZeRO 2 on, weights gathered twice under ZeRO 3.
    sent = gradients * (2 if launch.zero < 2 else 1 + micro if launch.zero == 2 else micro)
    sent += 2 * micro * weights if launch.zero == 3 else 0
    if launch.shard_teacher:
        passes_of_teacher = micro * max((part.reads for part in work.parts), default=0.0)
        sent += number * sum(m.parameters for m in work.frozen) * passes_of_teacher
    return sent


# --- disk
def state_bytes(work: Work) -> int:
    """Bytes of a checkpoint, with the float32 mean of a student that is taught by one."""
    number = saving.BYTES if work.launch.zero else saving.BYTES_ZERO_0
    return number * work.student.trained + 4 * work.mean


def saves(work: Work, hours: float) -> int:
    """Checkpoints of a training that takes so many hours without them."""
    launch = work.launch
    if not work.steps:
        return 0
    by_time = int(60 * hours // launch.save_minutes) if launch.save_minutes else None
    return (work.steps // launch.save_every if by_time is None else by_time) + work.evaluations


def disk(work: Work) -> tuple[int, int]:
    """Bytes that stay (models, responses), and while the stage runs (two checkpoints, candidates, cache)."""
    model = bytes_of(work.precision) * work.student.parameters
    kept = work.outputs * model + work.answers * ANSWER
    if not work.steps:
        return kept, 0
    width = work.teacher.width if work.teacher else 0
    candidates = 2 * bytes_of(work.precision) * work.student.trained
    return kept, int(2 * state_bytes(work) + candidates + work.cached * width * bytes_of(work.precision))
