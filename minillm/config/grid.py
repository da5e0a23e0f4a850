"""Grids of learning rates and lengths of training: the section, its candidates, and settings of its jobs."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Training
from minillm.config.stage_settings import OnPolicySettings, TrainSettings
from minillm.config.strict import STRICT, Name, Positive, must_be_one_of
from minillm.errors import UserError

# Not a dependency to the rules: a stage's code does not change with the sections of other stages.
if TYPE_CHECKING:
    from minillm.config.experiment import Experiment

Rule = Literal["dev_rouge", "dev_objective", "dev_reverse_kl", "dev_loss"]
# Stages of supervised training that may have a grid.
SUPERVISED = ("sft", "kd", "seqkd")


@dataclass(frozen=True, config=STRICT)
class Candidates:
    """The candidates of one method: each learning rate with each length."""

    lr: tuple[Positive, ...] = Field(
        default=(),
        description="Learning rates to try; empty takes those of `grid.lr`, which are not for `sft`, `kd` "
        "and `seqkd` and variants of these.",
    )
    length: tuple[Positive, ...] = Field(
        default=(),
        description="Lengths of training to try, as factors of `collections` or `epochs`; empty takes those "
        "of `grid.length`.",
    )
    rule: Rule | None = Field(default=None, description="How to choose; `null`: by `grid.rule`.")


@dataclass(frozen=True, config=STRICT)
class Grid:
    """Learning rates and lengths that are tried on short runs before the training (docs/running.md)."""

    lr: tuple[Positive, ...] = Field(
        default=(),
        description="Learning rates to try for every on-policy method of the run; empty: only for methods "
        "that name their own in `grid.methods`, as `sft`, `kd` and `seqkd` have to.",
    )
    length: tuple[Positive, ...] = Field(
        default=(1.0,),
        min_length=1,
        description="Lengths of training to try, as factors of `collections` or `epochs`.",
    )
    methods: dict[Name, Candidates] = Field(
        default_factory=dict, description="Single methods, with candidates in place of those above."
    )
    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of its `collections` (`epochs`) that a candidate is trained for. Evaluations, and "
        "what depends on the share of the training done, shrink with it.",
    )
    rule: Rule = Field(
        default="dev_rouge",
        description="By which dev value of the checkpoint that would be kept a candidate is chosen: the "
        "highest `dev_rouge`, or the lowest `dev_objective` (the method's own), `dev_reverse_kl` (on-policy "
        "methods only) or `dev_loss`.",
    )

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        if self == Grid():
            return
        trained = dict.fromkeys(method for *_, method in config.trained(sweeps=True))
        for name in self.methods:
            key = f"grid.methods.{name}"
            must_be_one_of(name, config.every_method, where, key, "the methods")
            # So that `methods` may be set to a few of them for once.
            if name not in trained:
                continue
            stage = config.stage_of(name)
            if not candidates(self, name, stage):
                raise UserError(f"{where}: {key}.lr: missing; name the rates to try")
            if stage in SUPERVISED and rule_of(self, name) == "dev_reverse_kl":
                problem = "supervised training does not measure dev_reverse_kl; name another rule"
                raise UserError(f"{where}: {key}.rule: {problem}")
        if not self.lr and not self.methods:
            raise UserError(f"{where}: grid.lr: missing; name the rates to try")
        for name in ("", *self.methods):
            names = [candidate.name for candidate in candidates(self, name, config.stage_of(name))]
            if len(set(names)) < len(names):
                key = f"grid.methods.{name}" if name else "grid"
                raise UserError(f"{where}: {key}: two candidates are equal to six digits; remove one")


@dataclass(frozen=True)
class Candidate:
    """A learning rate, and a length as a factor of the configuration's."""

    lr: float
    length: float

    @property
    def name(self) -> str:
        """It names files: `lr0.001`, or `lr0.001-length2`."""
        return f"lr{self.lr:g}" + ("" if self.length == 1 else f"-length{self.length:g}")


def candidates(grid: Grid, method: str, stage: str) -> list[Candidate]:
    """What is tried for a method that a stage trains, in order; empty if it has no grid."""
    own = grid.methods.get(method, Candidates())
    rates = own.lr or (() if stage in SUPERVISED else grid.lr)
    return [Candidate(lr, length) for length in own.length or grid.length for lr in rates]


def rule_of(grid: Grid, method: str) -> Rule:
    """By which rule a candidate of a method is chosen."""
    own = grid.methods.get(method)
    return own.rule if own and own.rule else grid.rule


def shortened(training: Training | OnPolicy, lr: float, length: float, share: float = 1.0) -> Any:
    """`training` with this rate, for `length` * `share` of its time; a short run has fewer evaluations."""
    adaptive = isinstance(training, OnPolicy) and training.adaptive
    changes: dict[str, Any] = {"lr": lr}
    if share < 1:
        changes["evaluations"] = max(1 + adaptive, math.ceil(training.evaluations * share))
    if isinstance(training, OnPolicy):
        changes["collections"] = max(1, round(training.collections * length * share))
    else:
        changes["epochs"] = training.epochs * length * share
    return dataclasses.replace(training, **changes)


def split(trained: str) -> tuple[str, str, str]:
    """(method, student, teacher) of a path like kd/small/big; SFT has no teacher."""
    method, student, teacher = (*trained.split("/"), "")[:3]
    return method, student, teacher


class TrialSettings:
    """`trial`: one candidate of a grid, as settings of the method's own stage."""

    @classmethod
    def of(cls, config: Experiment, stage: str, trial: str) -> TrainSettings | OnPolicySettings:
        """The settings in `config` for `trial`: method, student, teacher (not for SFT) and candidate."""
        trained, _, name = trial.rpartition("/")
        method, student, teacher = split(trained)
        stage_of = config.stage_of(method)
        chosen = {c.name: c for c in candidates(config.grid, method, stage_of)}[name]
        kind: Any = TrainSettings if stage_of in SUPERVISED else OnPolicySettings
        names = {"teacher": teacher} if teacher else {}
        settings = kind.of(config, method, model=student, seed=config.training_seeds[0], **names)
        training = shortened(settings.training, chosen.lr, chosen.length, config.grid.share)
        return dataclasses.replace(settings, training=training, trial=True)


@dataclass(frozen=True, config=STRICT)
class GridSettings:
    """`grid`: the choice among the candidates of one method, for one student and teacher."""

    stage: Literal["grid"]
    method: str
    model: str
    teacher: str
    rule: Rule
    share: float
    # Name of a candidate -> rate, length.
    candidates: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, config: Experiment, stage: str, trained: str) -> GridSettings:
        """The settings in `config` for the method, student and teacher of the path `trained`."""
        method, student, teacher = split(trained)
        return cls(
            stage="grid",
            method=method,
            model=student,
            teacher=teacher,
            rule=rule_of(config.grid, method),
            share=config.grid.share,
            candidates={
                c.name: (c.lr, c.length) for c in candidates(config.grid, method, config.stage_of(method))
            },
        )
