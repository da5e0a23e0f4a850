"""From a configuration to the work of each of its jobs: what the stages' own modules do, in numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.config.derive import launch_values
from minillm.config.experiment import Experiment
from minillm.config.grid import TrialSettings
from minillm.config.launch import Launch
from minillm.config.sections import Sampling, Training
from minillm.config.stages import STAGES
from minillm.fits.machines import BANDWIDTH, COMPUTE
from minillm.fits.on_policy import Phase
from minillm.fits.passes import Loss
from minillm.fits.rows import PROMPT, RESPONSE, Lengths, lengths_of, rows_of, shown_of
from minillm.fits.sizes import Size, adapted, shape_of, size_of
from minillm.fits.work import Draw, Part, Read, Work
from minillm.runtime.schedule import count_steps

# Stages whose jobs work with models, by what their benchmark files' paths name after the stage.
PLACES = {
    "base": ("model",),
    "teacher": ("model",),
    "sft": ("model",),
    "kd": ("model", "teacher"),
    "seqkd": ("model", "teacher"),
    "pseudo": ("tokenizer", "model"),
    "minillm": ("model", "teacher"),
    "generate": ("model",),
    "samples": ("model",),
    "exposure_bias": ("teacher", "model"),
    "reference_loss": ("model",),
    "calibration": ("model",),
    "mode_mass": ("model",),
}


@dataclass(frozen=True)
class Key:
    """What makes jobs alike: stage, method (MiniLLM's variants), models, and for an evaluation its set.

    candidate: of a grid, for its trial.
    """

    stage: str
    method: str
    model: str
    teacher: str = ""
    test: str = ""
    candidate: str = ""


def key_of(config: Experiment, benchmark: str) -> Key | None:
    """The key of the job with this benchmark file; None if it works with no model.

    All seeds of a model are alike, and all models of one size that answer one test set.
    """
    parts = benchmark.removesuffix(".tsv").split("/")
    if "benchmarks" not in parts:
        return None
    method, *rest = parts[parts.index("benchmarks") + 1 :]
    if method == "trial":
        name, model, *teacher, candidate = rest
        stage = config.stage_of(name)
        return Key(stage, name, model, "".join(teacher), candidate=candidate)
    stage = config.kinds.get(method, method)
    if stage not in PLACES:
        return None
    names = dict(zip(PLACES[stage], rest, strict=False))
    test = rest[-1] if stage in STAGES and (STAGES[stage].sets or stage in ("generate", "samples")) else ""
    return Key(stage, method, names["model"], names.get("teacher", ""), test)


class Planner:
    """A configuration, and the checkout whose prepared data and models are looked at, each once."""

    def __init__(self, config: Experiment, root: Path = Path()) -> None:
        self.config, self.root = config, root
        self._sizes: dict[str, Size] = {}
        self._lengths: dict[str, Lengths] = {}

    def size(self, model: str) -> Size:
        """Sizes of a model of the configuration; UserError if nothing says its shape."""
        if model not in self._sizes:
            self._sizes[model] = size_of(shape_of(self.config, model, self.root))
        return self._sizes[model]

    def lengths(self, model: str) -> Lengths:
        """Rows and their lengths in a model's tokens."""
        tokenizer = self.config.models[model].tokenizer
        if tokenizer not in self._lengths:
            self._lengths[tokenizer] = lengths_of(self.config, tokenizer, self.root)
        return self._lengths[tokenizer]

    def assumptions(self) -> str:
        """One line for what the estimates are made of."""
        prepared = [name for name, lengths in self._lengths.items() if not lengths.assumed]
        rows = (
            f"lengths of the prepared data ({', '.join(prepared)})"
            if prepared
            else f"prompts of {PROMPT:g} and responses of {RESPONSE:g} tokens (no data is prepared yet)"
        )
        return (
            f"Estimates from the models' shapes: bytes of tensors at the longest rows; hours with {rows}, "
            f"{COMPUTE:.0%} of a GPU's published speed and {BANDWIDTH:.0%} of its bandwidth (docs/scale.md)."
        )

    def launch(self, key: Key) -> Launch:
        """The launch values that the configuration has for such jobs."""
        models = [name for name in (key.teacher, key.model) if name]
        return Launch(**launch_values(self.config, key.stage, models))

    def work(self, key: Key, launch: Launch | None = None) -> Work:
        """The work of such jobs, under other launch values if they are given.

        Raises UserError if a shape is missing.
        """
        config, launch = self.config, launch or self.launch(key)
        student = self.size(key.model)
        teacher = self.size(key.teacher) if key.teacher else None
        bare = Work(key.stage, student, (), launch, config.precision)
        if key.stage == "base":
            return self._base(bare, key)
        if key.stage in ("teacher", "sft", "kd", "seqkd", "minillm"):
            return self._trained(bare, key, teacher)
        return self._evaluation(bare, key, teacher)

    def _trained(self, bare: Work, key: Key, teacher: Size | None) -> Work:
        """Fine-tuning, of an adapter if the model has one; other models on its base then share that."""
        config, launch, base = self.config, bare.launch, bare.student
        adapter = config.models[key.model].adapter
        student = size_of(adapted(base.shape, adapter))
        on_base = adapter is not None and teacher is not None and self._one_base(key)
        if on_base:
            teacher = size_of(adapted(base.shape, config.models[key.teacher].adapter))
        settings: Any = None
        initial: tuple[Size, ...] = ()
        further: tuple[Size, ...] = ()
        if key.stage == "minillm":
            settings = config.on_policy(key.method, key.model)
            initial = (student,) if settings.anchored or launch.initial_kl else ()
            if settings.teacher is not None:
                # Who teaches, next to the pair's teacher, which measures the dev set; the student itself
                # needs no room.
                shares = settings.teacher.who == "initial" and bool(initial)
                another = settings.teacher.who in ("initial", "ema") and not shares
                initial += (student,) * another
                further = tuple(self.size(name) for name in settings.teacher.panel)
        else:
            settings = config.supervised(key.method, key.model)
        if key.candidate:
            trained = layout.grid_key(key.method, key.model, key.teacher)
            settings = TrialSettings.of(config, "trial", f"{trained}/{key.candidate}").training
        if key.stage != "minillm":
            teacher = teacher if settings.loss != "ce" else None
        sharded = launch.zero == 3 or (launch.shard_teacher and launch.processes > 1)
        models = (on_base and teacher is not None) + len(initial) if adapter and not sharded else 0
        bare = dataclasses.replace(
            bare,
            student=student,
            frozen=(*([teacher] if teacher else []), *initial, *further),
            shared=models * base.parameters,
        )
        lengths = self.lengths(key.model)
        if key.stage == "minillm":
            prompt = settings.teacher.prompt if settings.teacher else ""
            tokenizer = config.models[key.model].tokenizer
            shown = shown_of(config, tokenizer, prompt, lengths, self.root) if prompt else None
            pair = bare.frozen[0]
            return Phase(settings, student, pair, launch, config.data, lengths, shown).work(bare)
        return _supervised(bare, settings, lengths, (config.data.max_prompt, config.data.max_response))

    def _one_base(self, key: Key) -> bool:
        """Whether the teacher of such jobs is trained here, on the student's base model."""
        if layout.teacher_weights(key.teacher) in self.config.checkpoints:
            return False
        first, second = (
            dataclasses.replace(self.config.models[name], family="", size="", adapter=None)
            for name in (key.model, key.teacher)
        )
        return first == second

    def _base(self, bare: Work, key: Key) -> Work:
        spec, lengths = self.config.models[key.model], self.lengths(key.model)
        if spec.training is None:
            return dataclasses.replace(bare, outputs=1)
        parent = self.size(spec.parent) if spec.parent else None
        rows = lengths.chunks + (lengths.train if parent else 0)
        if spec.answers_of:
            rows += min(self.config.for_model("pseudo", spec.answers_of).rows or lengths.train, lengths.train)
        plain = dataclasses.replace(
            lengths, train=rows, prompt=1, response=lengths.chunk - 1, assumed=lengths.assumed
        )
        work = _supervised(
            dataclasses.replace(bare, frozen=(parent,) if parent and spec.training.loss != "ce" else ()),
            spec.training,
            plain,
            (1, lengths.chunk - 1),
        )
        return dataclasses.replace(work, draws=(), outputs=1)

    def _evaluation(self, bare: Work, key: Key, teacher: Size | None) -> Work:
        """Stages that only sample or read."""
        config, lengths = self.config, self.lengths(key.model)
        longest = config.data.max_prompt

        def draws(rows: int, times: int, sampling: Sampling) -> Draw:
            response = min(lengths.response, sampling.max_tokens)
            return Draw((bare.student,), rows, times, lengths.prompt, response, longest, sampling.max_tokens)

        def reads(model: Size, rows: int, response: float, most: int) -> Read:
            return Read(model, rows, 1, lengths.prompt + response, response, longest + most)

        if key.stage == "pseudo":
            pseudo = config.for_model("pseudo", key.model)
            rows = min(pseudo.rows or lengths.train, lengths.train)
            rows += min(pseudo.dev_rows or lengths.dev, lengths.dev)
            return dataclasses.replace(bare, draws=(draws(rows, 1, pseudo.sampling),), answers=rows)
        if key.stage == "calibration":
            task = config.calibration.tasks[key.test]
            rows = rows_of(config, task.dataset) * len(task.labels)
            return dataclasses.replace(bare, reads=(reads(bare.student, rows, 2, 2),))
        rows = rows_of(config, key.test)
        if key.stage == "generate":
            seeds = len(config.sampling_seeds)
            drawn = draws(rows, seeds, config.generate)
            return dataclasses.replace(bare, draws=(drawn,), answers=rows * seeds)
        bias = config.exposure_bias
        if key.stage in ("samples", "exposure_bias"):
            rows = min(bias.prompts or rows, rows) * bias.responses
            drawn = draws(rows, 1, Sampling(max_tokens=bias.max_tokens))
            work = dataclasses.replace(bare, draws=(drawn,), answers=rows)
            if teacher is None:
                return work
            both = tuple(
                reads(m, 2 * rows, min(lengths.response, bias.max_tokens), bias.max_tokens)
                for m in (bare.student, teacher)
            )
            return dataclasses.replace(work, frozen=(teacher,), reads=both)
        return dataclasses.replace(
            bare, reads=(reads(bare.student, rows, lengths.response, config.data.max_response),)
        )


def _supervised(bare: Work, settings: Training, lengths: Lengths, longest: tuple[int, int]) -> Work:
    """training/supervised.py; `longest` are a prompt's and a response's tokens."""
    teacher, launch = bare.teacher, bare.launch
    # HPD reads the teacher's logits as KD does, and of the student's softmax no more.
    ratio = (1.0 if settings.loss == "hpd" else settings.kd_ratio) if teacher else 0.0
    steps = count_steps(lengths.train, settings)
    dev = min(settings.dev_rows or lengths.dev, lengths.dev)
    sharded = launch.shard_teacher and launch.processes > 1
    keeps = launch.teacher_cache and settings.epochs > 1 and not sharded
    tokens = lengths.prompt + lengths.response
    part = Part(
        settings.batch,
        lengths.prompt,
        lengths.response,
        sum(longest),
        longest[1],
        Loss(teacher, ratio),
        reads=(1 / settings.epochs if keeps else 1.0) if teacher else 0.0,
        scored=teacher is not None,
    )
    reads = [Read(bare.student, dev, settings.evaluations + 1, tokens, lengths.response, sum(longest))]
    if teacher:
        times = 1 if launch.teacher_cache else settings.evaluations + 1
        reads.append(Read(teacher, dev, times, tokens, lengths.response, sum(longest)))
    drawn = Draw((bare.student,), dev, settings.evaluations, lengths.prompt, lengths.response, *longest)
    return dataclasses.replace(
        bare,
        steps=steps,
        batch=settings.batch,
        dropout=settings.dropout,
        parts=(part,),
        draws=(drawn,),
        reads=tuple(reads),
        evaluations=settings.evaluations,
        kept=dev * lengths.response if teacher and launch.teacher_cache else 0.0,
        cached=lengths.train * lengths.response if teacher and keeps else 0.0,
        outputs=2 if bare.stage == "sft" else 1,
    )
