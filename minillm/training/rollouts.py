"""Sources of on-policy samples: the student (mixed with the teacher), the data, or a replay buffer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm import objectives
from minillm.config.onpolicy import OnPolicy
from minillm.config.sampler import Sampler
from minillm.config.sections import Sampling
from minillm.counts import repetition
from minillm.data.batching import at_once, collate, least_padding, moved
from minillm.data.rows import Rows
from minillm.models import tiled_loss
from minillm.models.head import head_of, response_hidden
from minillm.models.loading import special_tokens
from minillm.models.tiled_loss import Head
from minillm.runtime.engine import Engine
from minillm.runtime.processes import World
from minillm.runtime.schedule import batch_of_step
from minillm.runtime.shared_rows import gathered
from minillm.sampling.coins import grouped
from minillm.sampling.sample import Mixture, Record, sample
from minillm.training.dev_set import Dev
from minillm.training.vllm_rollouts import VllmRollouts

# Where each row comes from is drawn with other keys than everything else.
SOURCES = 2**42
# As in DistiLLM's released code.
ADAPTIVE_STEP, ADAPTIVE_EPS = 0.1, 0.1


@dataclass(frozen=True)
class Entry:
    """One response; it has a `record` if the current student has just sampled it.

    `cut`: it ended early because the models drifted apart.
    """

    row: int
    response: np.ndarray
    finished: bool = True
    record: Record | None = None
    cut: bool = False


@dataclass
class Memory:
    """What the choice of samples remembers between collections; part of every checkpoint."""

    student_share: float
    dev_loss: float | None = None
    # The newest last.
    buffer: list[Entry] = field(default_factory=list)
    # The first collection's values of what the guard watches.
    first: dict[str, float] = field(default_factory=dict)

    def look(self, dev_loss: float, settings: OnPolicy) -> None:
        """Raise the student's share if the dev loss has risen since the last time (DistiLLM's scheduler)."""
        if not math.isfinite(dev_loss):
            return
        if self.dev_loss is None:
            self.dev_loss = dev_loss
        elif settings.adaptive and dev_loss >= self.dev_loss + ADAPTIVE_EPS:
            self.student_share = min(1.0, self.student_share + ADAPTIVE_STEP)
            self.dev_loss = dev_loss

    def store(self, entries: Sequence[Entry], capacity: int) -> None:
        """Add new samples to the buffer; the oldest leave if it is full."""
        kept = [Entry(e.row, e.response, e.finished) for e in entries if e.record is not None]
        self.buffer = [*self.buffer, *kept][-capacity:] if capacity else []

    def saved(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        entries = [{"row": e.row, "response": e.response, "finished": bool(e.finished)} for e in self.buffer]
        return {**vars(self), "buffer": entries}

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Memory:
        """From what `saved` returned."""
        return cls(**{**values, "buffer": [Entry(**entry) for entry in values["buffer"]]})


@dataclass(frozen=True)
class Rollouts:
    """One collection, the same on every rank: row ids, prompts, responses, and recorded values, (rows, time).

    `mask` is 1 on response tokens, right-padded.  Recorded values are 0 for responses that were not sampled
    just now; `entropy` is the student's.  `teacher_entropy` is None if not asked for, and there for all
    responses.  `teacher_hidden`, (length, width) per row on the CPU, or None if not kept: the inner epochs
    recompute the teacher's logits from it at the cost of only the output matrix.  `teacher_prompts`: None if
    the teacher reads `prompts`.  `gold`: the rows' gold responses, None if the loss does not ask for them.
    `mixture_logprobs`, of what tokens were drawn from, is there if the teacher may have replaced them;
    `drifted`, 1 where the models disagreed, if that could end a response.
    """

    ids: list[int]
    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    mask: Tensor
    student_logprobs: Tensor
    teacher_logprobs: Tensor
    reverse_kl: Tensor
    summary: dict[str, float]
    teacher_hidden: list[Tensor] | None = None
    teacher_prompts: list[np.ndarray] | None = None
    # None in checkpoints of before they were kept.
    entropy: Tensor | None = None
    teacher_entropy: Tensor | None = None
    mixture_logprobs: Tensor | None = None
    drifted: Tensor | None = None
    gold: list[np.ndarray] | None = None

    @classmethod
    def restored(cls, values: dict[str, Any], world: World) -> Rollouts:
        """From a checkpoint, which every rank has read whole; the processes of a machine share the states."""
        made = cls(**values)
        if made.teacher_hidden is None:
            return made
        parts = {i: made.teacher_hidden[i] for i in range(world.rank, len(made.ids), world.size)}
        return dataclasses.replace(
            made, teacher_hidden=gathered(world, list(map(len, made.responses)), parts)
        )


def choose(rows: Rows, settings: OnPolicy, memory: Memory, collection: int, seed: int) -> list[int | Entry]:
    """The collection's rows: a row number if the student is to answer, an entry if the response exists.

    A row keeps its gold response with probability 1 - student_share.  Of the others, once the buffer is full,
    a share that grows with training (as in DistiLLM) is replayed.  The same on every rank.
    """
    chosen = batch_of_step(len(rows), settings.rollouts, collection, seed)
    replayed = collection / settings.collections if 0 < settings.replay <= len(memory.buffer) else 0.0
    draws = np.random.Generator(np.random.Philox(key=[seed + SOURCES, collection])).random((len(chosen), 3))
    plan: list[int | Entry] = []
    for row, (gold, old, which) in zip(chosen, draws, strict=True):
        if gold >= memory.student_share:
            plan.append(Entry(row, rows.response(row)))
        elif old < replayed:
            plan.append(memory.buffer[int(which * len(memory.buffer))])
        else:
            plan.append(row)
    return plan


def collect_rollouts(
    engine: Engine,
    teacher: PreTrainedModel,
    rows: Rows,
    dev: Dev,
    settings: OnPolicy,
    memory: Memory,
    collection: int,
    seed: int,
    vllm: VllmRollouts | None = None,
) -> Rollouts:
    """One collection: the ranks share the sampling of what `choose` leaves open, then all is combined.

    `vllm` samples if the settings ask for it.
    """
    plan = choose(rows, settings, memory, collection, seed)
    mine, groups = rows_of_rank(plan, rows, settings, engine.world)
    prompts = shown_to_teacher(rows, dev)
    keep = engine.launch.teacher_cache and settings.teacher_scores and settings.keeps_teacher
    weighs = any(weights.of_teacher_entropy for weights in settings.every_token_weights)
    with engine.whole():
        mixture = mixture_of(teacher, dev, settings, groups, prompts, mine)
        fresh = answered(engine, rows, dev, settings, mine, mixture, collection, seed, vllm)
        entries = completed(plan, fresh, engine.world)
        made, hidden = together(rows, entries, settings.teacher_reads), None
        if keep or weighs:
            read = rows.prompt if prompts is None else prompts.__getitem__
            hidden = teacher_hidden(engine, teacher, read, entries, special_tokens(dev.tokenizer)[1])
        if weighs and hidden is not None:
            # The entropy does not depend on which token is called the end.
            head = head_of(teacher, dev.vocabulary, settings.temperature)
            made = dataclasses.replace(made, teacher_entropy=entropies(engine.world, hidden, head, made.mask))
    memory.store(entries, settings.replay)
    shown = None if prompts is None else [prompts[entry.row] for entry in entries]
    gold = None if settings.gold is None else [rows.response(entry.row) for entry in entries]
    return dataclasses.replace(
        made, teacher_hidden=hidden if keep else None, teacher_prompts=shown, gold=gold
    )


def rows_of_rank(
    plan: Sequence[int | Entry], rows: Rows, settings: OnPolicy, world: World
) -> tuple[list[int], list[int] | None]:
    """(rows that the student answers on this rank, their groups if such share coins)."""
    asked = [row for row in plan if isinstance(row, int)]
    if settings.coins is None or not settings.teacher_reads:
        return asked[world.rank :: world.size], None
    # Rows of a group, which need the teacher at the same positions, share a batch where possible.
    group_of = grouped({row: len(rows.prompt(row)) for row in asked}, settings.coins)
    first, end = (rank * len(asked) // world.size for rank in (world.rank, world.rank + 1))
    mine = list(group_of)[first:end]
    return mine, [group_of[row] for row in mine]


def mixture_of(
    teacher: PreTrainedModel,
    dev: Dev,
    settings: OnPolicy,
    groups: Sequence[int] | None,
    prompts: Sequence[np.ndarray] | None,
    mine: Sequence[int],
) -> Mixture | None:
    """How the teacher takes part in answering the rows `mine`, by its own `prompts` if any; None if not."""
    if not settings.teacher_reads:
        return None
    sampler = settings.sampler or Sampler()
    theirs = None if prompts is None else [prompts[i] for i in mine]
    end = dev.teacher.ends[1] if dev.teacher is not None else None
    replaced, early_end = sampler.teacher_top_k, sampler.early_end
    return Mixture(teacher, settings.alpha, groups, theirs, end, replaced, early_end)


def answered(
    engine: Engine,
    rows: Rows,
    dev: Dev,
    settings: OnPolicy,
    mine: Sequence[int],
    mixture: Mixture | None,
    collection: int,
    seed: int,
    vllm: VllmRollouts | None,
) -> list[Entry]:
    """The student's answers to the rows `mine`, with their records; `vllm` samples if it is given."""
    asked_of, ids = [rows.prompt(i) for i in mine], [int(rows.ids[i]) for i in mine]
    eos, pad = special_tokens(dev.tokenizer)
    how: dict[str, Any] = {
        "seed": seed,
        "step": collection,
        "ends": [eos],
        "pad": pad,
        "vocabulary": dev.vocabulary,
        "mixture": mixture,
    }
    if vllm is not None:
        samples = vllm.sample(asked_of, ids, **how)
    else:
        top_p = (settings.sampler or Sampler()).top_p
        samples = sample(
            engine.model,
            asked_of,
            ids,
            Sampling(temperature=settings.temperature, top_p=top_p, max_tokens=settings.max_tokens),
            **how,
            record=True,
            batch=engine.launch.eval_batch,
            budget=engine.launch.eval_tokens,
            graphs=engine.launch.cuda_graphs,
        )
    return [Entry(i, r.tokens, r.finished, r.record, r.cut) for i, r in zip(mine, samples, strict=True)]


def completed(plan: Sequence[int | Entry], fresh: Sequence[Entry], world: World) -> list[Entry]:
    """`plan` with what all ranks have sampled in the place of its row numbers; this rank's is `fresh`."""
    sent = world.gather([without_states(entry) for entry in fresh])
    by_row = {entry.row: entry for part in [*sent, fresh] for entry in part}
    return [by_row[row] if isinstance(row, int) else row for row in plan]


def entropies(world: World, hidden: Sequence[Tensor], head: Head, mask: Tensor) -> Tensor:
    """A model's entropy at each token, in the shape of `mask`, from its hidden states; the ranks share it."""

    def of_tile(logits: Tensor, _: slice) -> Tensor:
        logs = logits.log_softmax(-1)
        return -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(-1)

    mine = {
        i: tiled_loss.values(of_tile, moved(hidden[i], world.device), head).cpu()
        for i in range(world.rank, len(hidden), world.size)
    }
    values = torch.zeros_like(mask)
    for part in world.gather(mine):
        for i, row in part.items():
            values[i, mask[i].bool()] = row.to(values.dtype)
    return values


def shown_to_teacher(rows: Rows, dev: Dev) -> list[np.ndarray] | None:
    """The teacher's prompt of each training row; None if it reads the student's."""
    if dev.teacher is None:
        return None
    return [dev.teacher.prompts["train"][id_] for id_ in rows.ids]


def without_states(entry: Entry) -> Entry:
    """The entry without the teacher's hidden states, which every rank gets in another way."""
    if entry.record is None:
        return entry
    return dataclasses.replace(entry, record=dataclasses.replace(entry.record, teacher_hidden=None))


def teacher_hidden(
    engine: Engine,
    teacher: PreTrainedModel,
    prompt_of: Callable[[int], np.ndarray],
    entries: Sequence[Entry],
    pad: int,
) -> list[Tensor]:
    """The teacher's hidden states at each token of each response, (length, width), on the CPU and every rank.

    `prompt_of` returns the prompt that the teacher reads of a training row.  Taken from the sampling if it
    read along, then part of the records of the rank that sampled; for all other responses from one pass that
    the ranks share.
    """
    parts = {
        i: e.record.teacher_hidden
        for i, e in enumerate(entries)
        if e.record and e.record.teacher_hidden is not None
    }

    def length(i: int) -> int:
        return len(prompt_of(entries[i].row)) + len(entries[i].response)

    held = {i for part in engine.world.gather(set(parts)) for i in part}
    missing = sorted((i for i in range(len(entries)) if i not in held), key=length)
    mine = missing[engine.world.rank :: engine.world.size]
    device, launch = engine.world.device, engine.launch
    for part in least_padding(mine, length, launch.eval_batch, at_once(device, launch.eval_tokens)):
        batch = collate([(prompt_of(entries[i].row), entries[i].response) for i in part], pad).to(device)
        hidden = response_hidden(teacher, batch).cpu()
        parts.update(zip(part, hidden.split([len(entries[i].response) for i in part]), strict=True))
    return gathered(engine.world, [len(e.response) for e in entries], parts)


def together(rows: Rows, entries: Sequence[Entry], watched: bool) -> Rollouts:
    """Entries as tensors with their logged summary; if `watched`, their records hold the teacher's values."""
    width = max(len(e.response) for e in entries)
    mask = torch.zeros(len(entries), width)
    for k, entry in enumerate(entries):
        mask[k, : len(entry.response)] = 1.0

    def recorded(name: str) -> Tensor:
        values = torch.zeros_like(mask)
        for k, entry in enumerate(entries):
            if entry.record is not None:
                values[k, : len(entry.response)] = torch.from_numpy(getattr(entry.record, name))
        return values

    def marked(name: str) -> bool:
        return any(e.record is not None and getattr(e.record, name) is not None for e in entries)

    sampled = [e for e in entries if e.record is not None]
    fresh = mask * torch.tensor([[float(e.record is not None)] for e in entries])
    reverse, entropy = recorded("reverse_kl"), recorded("entropy")
    summary = {
        "fresh": len(sampled) / len(entries),
        "repetition": float(np.mean([repetition(e.response) for e in entries])),
    }
    summary["response_length"] = mask.sum(1).mean().item()
    summary["sampled_tokens"] = fresh.sum().item()
    if sampled:
        summary["finished"] = float(np.mean([e.finished for e in sampled]))
        summary["entropy"] = objectives.masked_mean(entropy, fresh).item()
        if watched:
            summary["rollout_reverse_kl"] = objectives.masked_mean(reverse, fresh).item()
    mixture = drifted = None
    if marked("replaced"):
        mixture = recorded("mixture_logprobs")
        summary["replaced"] = objectives.masked_mean(recorded("replaced"), fresh).item()
    if marked("drifted"):
        drifted = recorded("drifted")
        summary["drifted"] = objectives.masked_mean(drifted, fresh).item()
        summary["cut"] = float(np.mean([e.cut for e in sampled]))
    return Rollouts(
        [int(rows.ids[e.row]) for e in entries],
        [rows.prompt(e.row) for e in entries],
        [e.response for e in entries],
        mask,
        recorded("student_logprobs"),
        recorded("teacher_logprobs"),
        reverse,
        summary,
        entropy=entropy,
        mixture_logprobs=mixture,
        drifted=drifted,
    )
