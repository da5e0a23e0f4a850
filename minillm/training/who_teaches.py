"""Stage minillm's models of who teaches, if that is not the teacher of the pair with its usual prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from minillm.config.launch import Launch
from minillm.config.stage_settings import OnPolicySettings
from minillm.config.teaching import Teaching
from minillm.data.rows import AGAIN, Rows
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.errors import UserError
from minillm.models.loading import check_same_tokenizer
from minillm.training.lengths import check_rows
from minillm.training.mini_batch import Task
from minillm.training.teaching import Panel


@dataclass(frozen=True)
class Models:
    """Where teachers come from: the student in training, its first weights, further teachers by name.

    `frozen` loads a model that is not trained; its second argument says whether the ranks may share it.
    """

    student: PreTrainedModel
    init: Path
    further: Mapping[str, Path]
    frozen: Callable[..., PreTrainedModel]


def check_launch(settings: OnPolicySettings, launch: Launch) -> None:
    """Raises UserError, one line, for launch values under which this teacher cannot be computed."""
    teaching = settings.training.teacher
    if teaching is None:
        return
    if teaching.moves and launch.zero == 3:
        raise UserError(
            f"launch.zero: '{teaching.who}' teaches with the student's whole weights, which ZeRO 3 shards; "
            "set 2 or less"
        )
    if launch.shard_teacher and (teaching.who == "ema" or teaching.panel):
        what = "a mean of the student" if teaching.who == "ema" else "a teacher of some rows only"
        raise UserError(f"launch.shard_teacher: {what} cannot be sharded; set false")


def teachers_of(teaching: Teaching | None, folders: Sequence[Path] | None, student: Path) -> dict[str, Path]:
    """The further teachers' folders by name; UserError if they are not as many as the settings name.

    They must have the tokens of `student`.
    """
    names = teaching.panel if teaching is not None else ()
    if len(names) != len(folders or ()):
        named = ", ".join(names) or "none"
        raise UserError(
            f"--panel: {len(folders or ())} folders, but by_category names {named}; give one each"
        )
    for folder in folders or ():
        check_same_tokenizer(student, folder)
    return dict(zip(names, folders or (), strict=True))


def taught(task: Task, teaching: Teaching, models: Models, data: Path, prompts: Path | None) -> Task:
    """`task`, whose teacher is the pair's, with who teaches in its place.

    `prompts`: the rows as that is shown them.  Raises UserError if there are none, if its rows are not those
    of `data`, if they are longer than the model takes, and if no row has one of the categories.
    """
    if prompts is None:
        raise UserError("--prompts: missing; who teaches needs the rows as it is shown them")
    shown, settings = TeacherPrompts.open(data, prompts), task.settings
    name = teaching.prompt and f"data.prompts.{teaching.prompt}"
    pair, initial = task.teacher, task.anchor or task.initial
    if teaching.who == "pair":
        teacher = pair
    elif teaching.who == "self":
        teacher = models.student
    elif teaching.who == "ema":
        # Its weights move, so each rank needs them whole, and none may share them.
        teacher = models.frozen(models.init, False)
    else:
        teacher = initial or models.frozen(models.init)
    further = [models.frozen(folder) for folder in models.further.values()]
    for model in (teacher, *further):
        check_rows(model, prompts, settings.max_tokens, key=name or "data.max_prompt")
    return dataclasses.replace(
        task,
        teacher=teacher,
        dev=dataclasses.replace(task.dev, teacher=shown),
        panel=panel_of(teaching, [teacher, *further], list(models.further), prompts) if further else None,
        pair=(pair, task.dev.teacher),
    )


def panel_of(teaching: Teaching, models: list[Any], names: list[str], prompts: Path) -> Panel:
    """The pair's teacher and further ones (`models`; `names` without the first), by the rows' categories.

    Raises UserError if a row has none recorded, or no training row has one that is named.
    """
    numbers = {c: 1 + names.index(name) for c, name in (teaching.by_category or {}).items()}
    rows: dict[str, dict[int, int]] = {}
    for split in ("train", "dev"):
        records = Rows.open(prompts, split).records
        if not all(isinstance(record.get("category"), str) for record in records):
            raise UserError(f"{prompts}: a {split} row without a category; {AGAIN}")
        rows[split] = {int(r["id"]): numbers.get(r["category"], 0) for r in records}
        present = {record["category"] for record in records}
        if split == "train" and (missing := [c for c in numbers if c not in present]):
            have = ", ".join(sorted(filter(None, present))[:8]) or "no categories (datasets.NAME.fields)"
            raise UserError(f"teacher.by_category.{missing[0]}: no training row has it; rows have {have}")
    return Panel(models, rows)
