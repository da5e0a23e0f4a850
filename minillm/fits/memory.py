"""Bytes of a job's tensors on each device and in the CPU's memory, part by part.

What each part is follows the code that allocates it: runtime/engine.py with DeepSpeed's templates (weights,
gradients, optimizer, buckets), sampling/ (caches, positions), models/tiled_loss.py (tiles), training/ (what
is kept of the teacher).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minillm.data.batching import CPU_POSITIONS
from minillm.fits import passes
from minillm.fits.passes import How, Rows
from minillm.fits.sizes import bytes_of, kind_of
from minillm.fits.work import Draw, Work
from minillm.runtime.schedule import share

# runtime/deepspeed/: numbers of a bucket of gradients, and DeepSpeed's defaults of how many gathered weights
# live at once under ZeRO 3 and how many are updated together.
BUCKET, GATHERED, GROUP = 200_000_000, 1_000_000_000, 1_000_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes of one device; in the CPU's memory `host`, for one process, and `store`, for a machine.

    weights, teacher (and a mean in float32, if that teaches) and optimizer (float32 weights and two moments)
    are there throughout.  On top of them come one after the other: an update (waiting: gradients of earlier
    micro-batches; buckets: what is sent and gathered; activations and tiles, or in their place reading: the
    pass of a teacher with prompts of its own, before them, or arriving: new gradients), the optimizer's step
    (gradients and copies of them), and sampling with dev sets (gathered weights, caches, positions).
    store: the teacher's hidden states, which all processes of a machine share; host: what `offload` moves.
    """

    weights: int = 0
    teacher: int = 0
    gradients: int = 0
    waiting: int = 0
    arriving: int = 0
    optimizer: int = 0
    buckets: int = 0
    activations: int = 0
    tiles: int = 0
    reading: int = 0
    step: int = 0
    gathered: int = 0
    caches: int = 0
    positions: int = 0
    host: int = 0
    store: int = 0

    @property
    def held(self) -> int:
        """What is there at any time after the first step."""
        return self.weights + self.teacher + self.optimizer

    @property
    def moments(self) -> dict[str, int]:
        """Bytes at each of the three moments."""
        return {
            "update": self.held
            + self.waiting
            + self.buckets
            + max(self.activations + self.tiles, self.arriving, self.reading),
            "step": self.held + self.gradients + self.step,
            "sampling": self.held + self.gathered + self.caches + self.positions,
        }

    @property
    def peak(self) -> int:
        """Bytes of the device at the largest moment."""
        return max(self.moments.values())

    def on(self, device: str, processes: int) -> int:
        """Bytes that one device has to hold: on a CPU those of all processes, and what is kept there."""
        return self.peak if device == "cuda" else self.peak * processes + self.of_cpu(processes)

    def of_cpu(self, processes: int) -> int:
        """Bytes that such processes of one machine keep in the CPU's memory beside those of their devices."""
        return self.host * processes + self.store


def memory(work: Work, device: str = "cuda") -> Memory:
    """Bytes for each process of `work`; on a CPU all of it shares one memory, `store` and `host` included.

    Raises UserError if the processes do not divide the batch.
    """
    number, launch = bytes_of(work.precision), work.launch
    teacher = sum(m.parameters for m in work.frozen) - work.shared
    sharded = launch.processes if launch.shard_teacher else 1
    trained = _training(work, device) if work.steps else {}
    own = number * work.student.parameters
    parts = {
        "weights": own,
        "teacher": number * teacher // sharded + mean_bytes(work),
        **trained,
        **_sampling(work, device),
        "store": int(work.kept * number * (work.teacher.width if work.teacher else 0)),
    }
    if sharded > 1:
        # Every process keeps a copy of the output matrix (models.head.keep_head).
        parts["teacher"] += number * sum(model.head for model in work.frozen)
    gathered = number * teacher if sharded > 1 and work.draws else 0
    if work.steps and launch.zero == 3:
        gathered += own
    return Memory(**(parts | {"gathered": gathered}))


def mean_bytes(work: Work) -> int:
    """Of a mean of the student's weights in float32, which a teacher in float32 holds itself."""
    return 4 * work.mean if bytes_of(work.precision) < 4 else 0


def least(work: Work) -> int:
    """Bytes that a process has at least, without a look at activations: in the optimizer's step."""
    number, launch, size = bytes_of(work.precision), work.launch, work.student
    held = number * (sum(model.parameters for model in (size, *work.frozen)) - work.shared)
    held += mean_bytes(work)
    if not work.steps or launch.offload or launch.zero == 3:
        return held
    own = size.trained // (launch.processes if launch.zero else 1)
    gradients = own if launch.zero == 2 else size.trained
    # Two moments, and float32 weights unless those of the model are.
    masters = 12 if number < 4 or launch.zero else 8
    return held + masters * own + number * gradients


def _training(work: Work, device: str) -> dict[str, int]:
    """weights, gradients, optimizer, buckets, activations, tiles, step and host of a training."""
    number, launch, size = bytes_of(work.precision), work.launch, work.student
    n, processes = size.trained, launch.processes
    rows = share(work.batch, processes)
    update = _update(work, device, rows)
    several = rows > launch.micro_batch
    # Of one process: DeepSpeed's ranks share masters and moments from ZeRO 1 on, gradients from 2, weights
    # from 3.
    own = n // processes if launch.zero else n
    half = work.precision != "fp32"
    # ZeRO 0 in float32 has no second copy of the weights.
    masters = 4 * own if half or launch.zero else 0
    parts = {
        "optimizer": masters + 8 * own,
        # From ZeRO 2 on only one process's part stays.
        "gradients": number * (own if launch.zero >= 2 else n),
        "buckets": 0,
        "activations": update.activations,
        "tiles": update.tiles + update.backward,
        "reading": _reading(work, device, rows),
        "step": _step(size.decaying // (processes if launch.zero else 1), number),
        "host": 0,
    }
    if launch.zero in (1, 2):
        parts["buckets"] = 2 * BUCKET * number
    if launch.zero == 3:
        parts["weights"] = number * (size.parameters // processes)
        parts["buckets"] = number * (BUCKET + min(size.parameters, GATHERED))
        parts["step"] = _step(min(own, GROUP), number)
    if launch.shard_teacher and processes > 1 and any(part.reads for part in work.parts):
        parts["buckets"] += number * min(sum(m.parameters for m in work.frozen), GATHERED)
    # Those of earlier micro-batches; and what a backward pass makes while activations go, if that is not
    # added in place.
    parts["waiting"] = parts["gradients"] if several else 0
    parts["arriving"] = parts["gradients"] if launch.zero == 2 or not several else 0
    if launch.offload and launch.zero >= 2:
        # Gradients in float32 too.
        parts |= {
            "host": parts["optimizer"] + 4 * own,
            "optimizer": 0,
            "step": 0,
            "gradients": 0,
            "waiting": 0,
        }
    return parts


def _step(numbers: int, number: int) -> int:
    """A flat copy of the gradients, and a second one in float32 if they are not."""
    return numbers * (number + (4 if number < 4 else 0))


def _update(work: Work, device: str, share_of_rank: int) -> passes.Update:
    """The largest micro-batch: rows of different parts go together, so its rows are as long as the longest.

    They all get the loss of the part that takes most: one to the teacher, if there is one.
    """
    launch = work.launch
    width, targets = (max(getattr(part, name) for part in work.parts) for name in ("width", "targets"))
    loss = max((part.loss for part in work.parts), key=lambda loss: loss.teacher is not None)
    rows = _micro_batch(work, share_of_rank)
    how = How(kind_of(work.precision), device, work.dropout, launch.gradient_checkpointing, launch.attention)
    return passes.update(work.student, Rows(rows, width, targets), how, loss)


def _micro_batch(work: Work, share_of_rank: int) -> int:
    """Rows of a micro-batch, by the longest row as student or teacher reads it."""
    rows, limit = min(work.launch.micro_batch, share_of_rank), work.launch.micro_tokens
    width = max(max(part.width, part.read[1]) for part in work.parts)
    return max(1, min(rows, limit // width)) if limit else rows


def _reading(work: Work, device: str, share_of_rank: int) -> int:
    """The pass over a micro-batch of a teacher that reads prompts of its own, before the student's."""
    how, rows = How(kind_of(work.precision), device), _micro_batch(work, share_of_rank)
    passed = [
        passes.without_gradient(part.loss.teacher, Rows(rows, part.read[1], 1), how)
        for part in work.parts
        if part.reads and part.shown and part.loss.teacher
    ]
    return max(passed, default=0)


def _sampling(work: Work, device: str) -> dict[str, int]:
    """caches and positions of the largest sampling or dev set."""
    found = [_draw(draw, work, device) for draw in work.draws] or [(0, 0)]
    caches, positions = max(found, key=sum)
    how = How(kind_of(work.precision), device)
    number = bytes_of(work.precision)
    for read in work.reads:
        rows = _rows(work, read.rows, read.longest)
        if device == "cpu":
            rows = max(1, min(rows, CPU_POSITIONS // read.longest))
        passed = passes.without_gradient(read.model, Rows(rows, read.longest, 1), how)
        # Tiles are no larger than those of a position's logits; hidden states wait for them.
        waiting = rows * read.longest * read.model.width * number
        if passed + waiting > caches + positions:
            caches, positions = 0, passed + waiting
    return {"caches": caches, "positions": positions}


def _rows(work: Work, rows: int, width: int) -> int:
    """Rows that are computed at once without gradients."""
    launch = work.launch
    own = max(1, -(-rows // launch.processes))
    at_once = min(launch.eval_batch, own)
    return max(1, min(at_once, launch.eval_tokens // width)) if launch.eval_tokens else at_once


def _draw(draw: Draw, work: Work, device: str) -> tuple[int, int]:
    """(KV caches of all models, what a position or reading the prompts takes on top).

    On a CPU weights are laid out a second time while they do not change (models/onednn_layout.py).
    """
    number = bytes_of(work.precision)
    rows = _rows(work, draw.rows, draw.width)
    of_each = list(zip(draw.models, (prompts.longest for prompts in draw.prompts), strict=True))
    # Without a coin the teacher reads all at once, at the end.
    along = len(draw.models) if draw.alpha or draw.coins is None else 1
    cached, later = of_each[:along], of_each[along:]
    caches = sum(number * model.cache * rows * (longest + draw.horizon) for model, longest in cached)
    how = How(kind_of(work.precision), device)
    extra, parts, passed = 0, [0], list[int]()
    for model, longest in cached:
        at_once = rows
        if device == "cpu" and rows * longest > CPU_POSITIONS:
            at_once = max(1, CPU_POSITIONS // longest)
            parts.append(number * model.cache * at_once * longest)
        passed.append(passes.without_gradient(model, Rows(at_once, longest, 1), how))
    if device == "cpu":
        extra += max(parts)
        extra += sum(number * (m.matrices + m.head) for m in draw.models if _laid_out(work.precision))
    for model, longest in later:
        width = longest + draw.horizon
        at_once = max(1, CPU_POSITIONS // width) if device == "cpu" else rows
        passed.append(passes.without_gradient(model, Rows(min(rows, at_once), width, 1), how))
    read = max(passed)
    # Logits of models that read along are in the vocabulary that they share.
    vocabulary = min(model.vocabulary for model in draw.models)
    if draw.coins is None or len(draw.models) == 1:
        both = len(draw.models) > 1
        drawn = passes.position(rows, vocabulary, both, draw.alpha, draw.record, draw.top_k, draw.top_p)
    else:
        drawn = passes.by_coin(rows, vocabulary)
        if draw.top_p < 1:
            drawn = max(drawn, passes.position(rows, vocabulary, False, 0.0, False, 0, draw.top_p))
        drawn = max(drawn, passes.recorded(rows * draw.horizon, vocabulary, draw.alpha, device))
        # The student's hidden states, until the teacher has read.
        extra += rows * draw.horizon * draw.models[0].width * number
    kept = 0
    if draw.record and len(draw.models) > 1:
        # Each position's hidden states, then all of them as one tensor; on a CPU each row's own at last.
        kept = rows * draw.horizon * draw.models[1].width * number * (3 if device == "cpu" else 2)
    return caches, extra + max(read, drawn, kept)


def _laid_out(precision: str) -> bool:
    return precision == "fp32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
