"""Anchors, who teaches in the on-policy phase, and what the teacher is shown: off if not set."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Name, Positive
from minillm.errors import UserError

if TYPE_CHECKING:
    from minillm.config.onpolicy import OnPolicy

# What a text of `data.prompts` may put in.
PLACES = ("instruction", "input", "question", "output")
# The name of a row's own prompt.
USUAL = "usual"
# Before the name of a further teacher, where a model records its inputs.
FURTHER = "teacher:"
# Those that every configuration has; it may have others under their names.
PROMPTS = {
    USUAL: "",
    "demonstration": "{question}\n\nA right answer:\n{output}\n\nNow answer it yourself.",
}


@dataclass(frozen=True, config=STRICT)
class Gold:
    """Cross-entropy on the gold answers of a mini-batch's prompts (StableOPD, arXiv 2604.08527)."""

    coefficient: Positive = Field(default=1.0, description="What it is multiplied by.")


@dataclass(frozen=True, config=STRICT)
class Teaching:
    """Who teaches, and by which prompt (docs/method.md)."""

    who: Literal["pair", "initial", "self", "ema"] = Field(
        default="pair",
        description="`pair`: the teacher of the pair. `initial`: the initial student. `self`: the student as "
        "it is. `ema`: an exponential mean of the student's weights. All but `pair` need a `prompt`.",
    )
    rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="With `ema`: the share of the student's weights in the mean, after each optimizer step; "
        "empty is 0.05, as in SDPO.",
    )
    prompt: str = Field(
        default="",
        description="What the teacher reads in place of the row's own prompt: a name of `data.prompts`, or "
        "`demonstration`, which shows it the gold answer; empty: the row's own prompt.",
    )
    by_category: dict[str, Name] | None = Field(
        default=None,
        description="Rows of these categories are taught by other models: category → entry of `models`, "
        "fine-tuned as a teacher too. The pair's teacher has all other rows. Needs `alpha: 0.0`.",
    )

    @property
    def moves(self) -> bool:
        """Whether the teacher's weights change from step to step."""
        return self.who in ("self", "ema")

    @property
    def panel(self) -> tuple[str, ...]:
        """The models that teach some categories, sorted."""
        return tuple(sorted(set((self.by_category or {}).values())))


def problem_of_teaching(s: OnPolicy) -> str:
    """What is wrong with anchors and teacher, after their key; "" if nothing is."""
    if s.extrapolate is not None:
        if s.extrapolate == 1:
            return "extrapolate: at 1 the target is the teacher itself; leave it out"
        if s.objective == "minillm":
            return "extrapolate: the long term's rewards are the teacher's own; choose another objective"
        if s.teacher_texts is not None:
            return "extrapolate: on the teacher's texts the target is the teacher; leave teacher_texts out"
    for i, term in enumerate(s.also or ()):
        if term.objective == "teacher_token" and term.signal is not None:
            return f"also.{i}.signal: 'teacher_token' has a single entry, the teacher's; leave it out"
    if s.objective == "teacher_token":
        key = next((key for key in ("signal", "taid", "assistant") if getattr(s, key) is not None), "")
        if key:
            return f"{key}: 'teacher_token' takes the teacher's likeliest token as it is; leave it out"
    return _problem_of_teacher(s, s.teacher) if s.teacher is not None else ""


def _problem_of_teacher(s: OnPolicy, t: Teaching) -> str:
    if t.rate is not None and t.who != "ema":
        return f"teacher.rate: '{t.who}' is no mean; leave it out, or set who: ema"
    if t.by_category is not None:
        if not t.by_category:
            return "teacher.by_category: names no category; leave it out"
        if t.who != "pair":
            return f"teacher.by_category: other models teach, not '{t.who}'; set who: pair"
        if s.alpha or s.teacher_reads or any(w.of_teacher_entropy for w in s.every_token_weights):
            key = next(
                (key for key in ("alpha", "stop_kl") if getattr(s, key)),
                "objective" if s.objective == "minillm" else "token_weights",
            )
            return (
                f"teacher.by_category: several teachers cannot read along while responses are sampled, which "
                f"{key} needs; leave it off"
            )
    if t.prompt in ("", USUAL) and t.by_category is None:
        why = {
            "pair": "the pair's teacher with its usual prompts is what teaches anyway; leave teacher out, or",
            "initial": "the initial student with the student's prompt only pulls it back; use init_kl, or",
            "self": "the student with its own prompt has nothing to teach itself;",
            "ema": "a mean of the student with its prompt only pulls it back; use init_kl, or",
        }
        return f"teacher.prompt: {why[t.who]} name another prompt, such as demonstration"
    if s.teacher_texts is not None:
        return "teacher_texts: they are those of the pair's teacher, and judged by it; leave teacher out"
    drawn_before = s.sampler is not None and (s.sampler.lag or s.sampler.cached)
    if t.moves and drawn_before and s.teacher_reads:
        return (
            f"teacher.who: '{t.who}' has moved on since samples that were drawn ahead were scored; leave "
            "sampler.lag and sampler.cached out"
        )
    if t.who != "pair" and s.lm_coef and s.lm_kd_ratio:
        return "lm_kd_ratio: only the pair's teacher can teach plain text; set 0.0"
    return ""


def check_prompt(name: str, text: str, where: str) -> None:
    """Raises UserError, one line naming `where`, if the text of a prompt is not a template of a row."""
    key = f"{where}: data.prompts.{name}"
    if name == USUAL:
        raise UserError(f"{key}: this name stands for the row's own prompt; choose another")
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"{key}: {error}; write {{{{ and }}}} for braces of the text itself") from None
    named = [place for _, place, _, _ in parts if place is not None]
    for place, spec, conversion in ((p, s, c) for _, p, s, c in parts if p is not None):
        if place not in PLACES or spec or conversion:
            known = ", ".join(f"{{{name}}}" for name in PLACES)
            raise UserError(f"{key}: cannot put in '{{{place}}}'; known: {known}")
    if not {"instruction", "question"} & set(named):
        raise UserError(f"{key}: the teacher would not see the question; put in {{question}}")
    if "output" not in named and not "".join(literal for literal, *_ in parts).strip():
        raise UserError(f"{key}: shows the teacher nothing but the row; put in {{output}}, or text")
