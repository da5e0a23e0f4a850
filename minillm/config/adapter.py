"""The section `models.NAME.adapter`: a low-rank adapter that is trained in place of the model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config import layout
from minillm.config.strict import STRICT, Count, Positive
from minillm.errors import UserError

if TYPE_CHECKING:
    from minillm.config.experiment import Experiment


@dataclass(frozen=True, config=STRICT)
class Adapter:
    """A low-rank adapter (LoRA, arXiv 2106.09685): W x becomes W x + alpha / rank B A x, with W frozen."""

    rank: Count = Field(
        default=16,
        description="Rows of A and columns of B. The released code of the paper: 8.",
    )
    alpha: Positive = Field(
        default=32.0,
        description="The adapter's product is scaled by `alpha / rank`. The released code of the paper: 32.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the adapter's inputs that is dropped in updates, in stages whose own `dropout` "
        "is true. The released code of the paper: 0.1.",
    )
    targets: tuple[str, ...] = Field(
        default=(),
        description="Linear layers of the decoder blocks that get an adapter, by the end of their names, "
        "such as `[q_proj, v_proj]` or `[attn.c_proj]`; empty: all of them.",
    )


def check_adapters(config: Experiment, where: str) -> None:
    """UserError if an adapter belongs to a model that this run does not fine-tune."""
    for weights, checkpoint in config.checkpoints.items():
        if checkpoint.adapter is not None:
            raise UserError(
                f"{where}: checkpoints.{weights}.adapter: this model is finished and not trained; "
                "remove the key"
            )
    trained = trained_models(config)
    for name, model in config.models.items():
        if model.adapter is not None and name not in trained:
            raise UserError(
                f"{where}: models.{name}.adapter: this run fine-tunes no such model, so there is nothing to "
                "train an adapter for; name it in pairs, or remove the key"
            )


def trained_models(config: Experiment) -> set[str]:
    """Names of the models that are fine-tuned, as a teacher or as a student."""
    students = config.trained(sweeps=True)
    teachers = {
        teacher for teacher, *_ in students if layout.teacher_weights(teacher) not in config.checkpoints
    }
    return teachers | {
        student
        for teacher, student, method in students
        for seed in config.seeds_of(teacher, student, method)
        if layout.student_weights(student, method, teacher, seed) not in config.checkpoints
    }
