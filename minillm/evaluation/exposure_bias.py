"""Stage `exposure_bias`: ExAccErr of a student and its teacher from samples of both (docs/evaluation.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from minillm import objectives
from minillm.config.launch import Launch
from minillm.config.measurements.exposure_bias import ExposureBiasSettings
from minillm.data.batching import collate, least_padding
from minillm.data.rows import Example
from minillm.data.sources import read_tests
from minillm.data.teacher_prompts import exchanged
from minillm.data.tokenizers import vocabulary_size
from minillm.errors import UserError
from minillm.evaluation import accumulated_error
from minillm.evaluation.accumulated_error import Totals
from minillm.evaluation.teacher_samples import Sampled, draw_samples, read_samples
from minillm.files import identity, origin, stage_key, without_unset, write_json
from minillm.models.head import head_of, logits_by_tile, response_hidden, response_values
from minillm.models.loading import check_same_tokenizer, load_model, load_tokenizer, special_tokens
from minillm.runtime.processes import World, start
from minillm.sampling.answerer import Answerer
from minillm.sampling.generate import load_answerer, remove_journals
from minillm.sampling.sample import check_room

# Number of lengths whose bootstrap draws are kept.
GRID = 16
# The curve's last value is taken where at least this share of the responses of either kind is alive.
LEAST_ALIVE = 0.1


@torch.no_grad()
def token_kl(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    examples: Sequence[Example],
    *,
    vocabulary: int,
    pad: int,
    batch: int,
    budget: int = 0,
    theirs: Sequence[Example] | None = None,
    swap: tuple[int, int] | None = None,
) -> list[np.ndarray]:
    """KL(p || q) in nats at each token of each response, (length,) float64 each.

    `examples` are (prompt ids, response ids); `theirs` what the teacher reads in place of them, if that is
    not the same, and `swap` the end tokens of student and teacher, if they differ.  Exact over the
    vocabulary without padded entries, in float32, `batch` examples at a time, of at most `budget` positions.
    """
    device = next(student.parameters()).device
    kl: dict[int, np.ndarray] = {}
    read = examples if theirs is None else theirs

    def length(i: int) -> int:
        return len(examples[i][1]) + max(len(examples[i][0]), len(read[i][0]))

    for part in least_padding(range(len(examples)), length, batch, budget):
        rows = collate([examples[i] for i in part], pad).to(device)
        other = rows if theirs is None else collate([theirs[i] for i in part], pad).to(device)
        given = logits_by_tile(response_hidden(teacher, other), head_of(teacher, vocabulary, swap=swap))

        def distance(logits: torch.Tensor, tile: slice, given: Any = given) -> torch.Tensor:
            return objectives.forward_kl(logits, given(tile))

        values = response_values(student, rows, vocabulary, distance).double().cpu().numpy()
        ends = np.cumsum([len(examples[i][1]) for i in part])[:-1]
        kl.update(zip(part, np.split(values, ends), strict=True))
    return [kl[i] for i in range(len(examples))]


def score(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    samples: Sequence[Sampled],
    positions: int,
    world: World,
    prompts: Mapping[int, np.ndarray] = MappingProxyType({}),
    **how: Any,
) -> Totals:
    """KL at each position of `samples`, summed over a prompt's responses.

    The ranks share the responses.  `prompts`: what the teacher reads, by id, if that is not the same.  `how`:
    as in `token_kl`.
    """
    examples = [(entry.prompt, response) for entry in samples for response in entry.responses]
    mine, theirs = range(len(examples))[world.rank :: world.size], None
    if prompts:
        read = [(prompts[entry.id], response) for entry in samples for response in entry.responses]
        theirs = [read[i] for i in mine]
    kl = token_kl(student, teacher, [examples[i] for i in mine], theirs=theirs, **how)
    parts = world.gather(kl)
    every = [parts[i % world.size][i // world.size] for i in range(len(examples))]
    count = len(samples[0].responses)
    return accumulated_error.totals([every[i : i + count] for i in range(0, len(every), count)], positions)


def run_stage(
    settings: ExposureBiasSettings,
    launch: Launch,
    *,
    samples: Path,
    model: Path,
    teacher: Path,
    out: Path,
    test: Path | None = None,
) -> None:
    """Write ExAccErr of the student `model`; `samples` are `teacher`'s, the student's are drawn here.

    `test`: the test set in the student's chat template, if that is not the teacher's.  Raises UserError if
    the samples are not this teacher's, lack a row of `test`, or the two have different vocabularies.
    """
    world = start(0, launch.patience)
    check_same_tokenizer(model, teacher)
    tokenizer = load_tokenizer(model)
    meta, theirs = read_samples(samples, settings.samples)
    if meta["model"] != identity(teacher):
        raise UserError(f"{samples}: not drawn from the weights in {teacher}; draw the samples again")
    own = {} if test is None else {"test": identity(test)}
    inputs = {"samples": identity(samples), "model": identity(model), **own}
    sources = {samples: inputs["samples"], model: inputs["model"], teacher: meta["model"]}
    made_of = origin(settings, sources if test is None else {**sources, test: own["test"]})
    journal = out.with_name(f".{out.name}.{stage_key(dataclasses.asdict(settings.samples), inputs)}")
    prompts = {entry.id: entry.prompt for entry in theirs}
    seen, swap = dict[int, np.ndarray](), None
    if test is not None:
        seen, swap = prompts, (special_tokens(tokenizer)[0], special_tokens(load_tokenizer(teacher))[0])
        prompts = own_prompts(test, prompts, samples)
        theirs = as_students(theirs, prompts, swap)
    precision, sampling = settings.samples.precision, settings.samples.sampling
    answerer = load_answerer(model, precision, sampling, launch, world, journal)
    ours = draw_samples(answerer, tokenizer, prompts, settings.samples, launch, world, journal)
    student = load_model(model, precision, world.device) if isinstance(answerer, Answerer) else answerer
    loaded = load_model(teacher, settings.samples.precision, world.device)
    check_room(loaded, list((seen or prompts).values()), settings.samples.sampling)
    how = {
        "vocabulary": vocabulary_size(tokenizer),
        "pad": special_tokens(tokenizer)[1],
        "batch": launch.micro_batch,
        "budget": launch.micro_tokens,
        "swap": swap,
    }
    positions = settings.samples.sampling.max_tokens
    both = [score(student, loaded, entries, positions, world, seen, **how) for entries in (ours, theirs)]
    if world.rank == 0:
        values = measure(settings, *both)
        ids = [entry.id for entry in ours]
        write_json(
            out,
            {"metric": "exposure_bias", "dataset": meta["dataset"], **values, "ids": ids, **made_of},
        )
        remove_journals(journal)
    world.barrier()


def own_prompts(test: Path, ids: Iterable[int], samples: Path) -> dict[int, np.ndarray]:
    """The student's prompts of these rows, from its test set; UserError if it lacks one."""
    found = {row["id"]: np.asarray(row["prompt_tokens"], dtype=np.int32) for row in read_tests(test)}
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise UserError(f"{test}: no row {missing[0]}, which {samples} has; make the test sets again")
    return {id_: found[id_] for id_ in ids}


def as_students(
    samples: Sequence[Sampled], prompts: Mapping[int, np.ndarray], ends: tuple[int, int]
) -> list[Sampled]:
    """The teacher's samples as answers to the student's prompts, with its end for the teacher's."""
    return [
        dataclasses.replace(s, prompt=prompts[s.id], responses=[exchanged(r, ends) for r in s.responses])
        for s in samples
    ]


def measure(settings: ExposureBiasSettings, student: Totals, teacher: Totals) -> dict[str, Any]:
    """The metric's values from the KL on both kinds of prefixes; null if a value does not exist."""
    how = {"finished": settings.finished, "semantics": settings.semantics}
    prompts, total = len(student.kl), float(student.alive[:, 0].sum())
    least = max(1.0, LEAST_ALIVE * total)
    length = accumulated_error.last_length(student, teacher, 1.0, semantics=settings.semantics)
    at = accumulated_error.last_length(student, teacher, least, semantics=settings.semantics)
    curve = accumulated_error.curve(student, teacher, np.ones(prompts), **how)
    draws = accumulated_error.bootstrap(student, teacher, settings.resamples, settings.samples.seed, **how)
    # Nothing to resample.
    if prompts < 2:
        draws = np.full_like(draws, np.nan)
    low, high = accumulated_error.band(draws, settings.level)
    first = 1 if settings.semantics == "released" else 0
    last = draws[:, at - 1] if at else np.zeros(0)
    finite = last[np.isfinite(last)]
    return {
        "n": prompts,
        "responses": settings.samples.responses,
        "mean": plain(curve.error[at - 1 : at])[0] if at else None,
        "mean_at": at,
        "least_alive": least,
        "standard_error": float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
        "over": "prompts (bootstrap)",
        "level": settings.level,
        "resamples": settings.resamples,
        **how,
        "sampling": without_unset(dataclasses.asdict(settings.samples.sampling)),
        "seed": settings.samples.seed,
        "lengths": list(range(1, length + 1)),
        "ex_acc_err": plain(curve.error[:length]),
        "low": plain(low[:length]),
        "high": plain(high[:length]),
        "R": plain(curve.r[:length]),
        "epsilon": plain(curve.epsilon[:length]),
        "alive": {
            "student": plain(student.alive.sum(0)[first : first + length]),
            "teacher": plain(teacher.alive.sum(0)[first : first + length]),
        },
        "draws": _kept(draws, settings.samples.sampling.max_tokens, length),
        # Each prompt's mean KL per token, over all tokens of its responses.
        "kl": {
            name: plain(t.kl.sum(1) / t.alive.sum(1))
            for name, t in (("student", student), ("teacher", teacher))
        },
    }


def _kept(draws: np.ndarray, positions: int, length: int) -> dict[str, Any]:
    """ExAccErr of every draw at a few lengths, which are the same for every student.

    Draw k has the same prompts for every student, so differences of two students' draws are a paired
    bootstrap over prompts.
    """
    lengths = sorted({-(-positions * i // GRID) for i in range(1, GRID + 1)})
    return {
        str(at): [v if v is None else round(v, 3) for v in plain(draws[:, at - 1])]
        for at in lengths
        if at <= length
    }


def plain(values: np.ndarray) -> list[float | None]:
    """Values for JSON, which has no NaN."""
    return [float(value) if math.isfinite(value) else None for value in values]
