"""How the samples of the on-policy phase differ from draws of the current student, or of Eq. 4's mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Count, Natural, NonNegative

if TYPE_CHECKING:
    from minillm.config.onpolicy import OnPolicy


@dataclass(frozen=True, config=STRICT)
class EarlyEnd:
    """A response ends where student and teacher have disagreed too often (Prune-OPD, arXiv 2605.07804).

    They disagree at a token if too few of their likeliest entries are the same ones.
    """

    top_k: Count = Field(
        default=16, description="How many of each model's likeliest entries are compared. Prune-OPD: 16."
    )
    threshold: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="They disagree if less than this share of the entries are the same. Prune-OPD: 0.7.",
    )
    events: Count = Field(
        default=100,
        description="The response ends with the token at which they disagree for this time. Prune-OPD: 100, "
        "one over its step of 0.01.",
    )
    base: NonNegative | None = Field(
        default=None,
        description="Multiply the terms of each token by this plus the share of `events` that is left after "
        "it. Prune-OPD: 0.5; `null`: no such weights.",
    )


@dataclass(frozen=True, config=STRICT)
class Sampler:
    """What is drawn, by whom, and when; keys may be combined unless a message says otherwise."""

    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Draw only from the student's likeliest tokens, up to this total probability; 1.0: off. "
        "What is recorded, and every loss, is of the whole distribution.",
    )
    teacher_top_k: Natural = Field(
        default=0,
        description="A token of the student that is not among this many of the teacher's likeliest is "
        "replaced by a draw of the teacher (SKD, arXiv 2410.11325, there 25); 0: off. Needs `alpha` 0.",
    )
    lag: Natural = Field(
        default=0,
        description="Train each collection on what the student answered so many collections earlier, the "
        "first ones on the initial student's answers; 0: the current student's.",
    )
    cached: bool = Field(
        default=False,
        description="Let the initial student answer the prompts of all collections before the first update, "
        "and keep the answers, with what the teacher says of them, on the disk (docs/running.md).",
    )
    early_end: EarlyEnd | None = Field(
        default=None, description="End responses on which the models drift apart; `null`: never."
    )

    @property
    def reads_along(self) -> bool:
        """Whether the teacher must read each token before the next one is drawn."""
        return self.teacher_top_k > 0 or self.early_end is not None


def problem(s: OnPolicy) -> str:
    """What is wrong with the sampler among the other settings, after its key; "" if nothing is."""
    own = s.sampler
    if own is None:
        return ""
    if own == Sampler():
        return "sampler: all of it is off; leave it out"
    if not s.student_share and not s.adaptive:
        return "sampler: the student draws nothing with student_share: 0"
    if own.reads_along and s.backend == "vllm":
        key = "teacher_top_k" if own.teacher_top_k else "early_end"
        return f"sampler.{key}: the teacher reads every token as it is drawn; set backend: transformers"
    if s.coins is not None and (own.reads_along or own.top_p < 1):
        key = "teacher_top_k" if own.teacher_top_k else "top_p" if own.top_p < 1 else "early_end"
        return f"sampler.{key}: with coins the teacher reads later than that; leave coins out"
    return _problem_of_policy(s, own) or _problem_of_time(s, own)


def _problem_of_policy(s: OnPolicy, own: Sampler) -> str:
    """Of what draws the tokens."""
    keys = [key for key, on in (("top_p", own.top_p < 1), ("teacher_top_k", own.teacher_top_k > 0)) if on]
    if keys and s.alpha:
        return f"sampler.{keys[0]}: the student proposes every token; set alpha: 0.0"
    if own.top_p < 1 and s.objective == "minillm":
        return (
            "sampler.top_p: tokens that it leaves out have no importance weight, which the long term needs; "
            "choose another objective"
        )
    signals = [s.signal, *(term.signal for term in s.also or ())]
    if keys and any(signal is not None and signal.tokens == "sampled" for signal in signals):
        return f"sampler.{keys[0]}: the 'sampled' token must be a draw of the student; choose another signal"
    return ""


def _problem_of_time(s: OnPolicy, own: Sampler) -> str:
    """Of when they are drawn."""
    if own.cached and own.lag:
        return "sampler.lag: 'cached' draws all collections at the start; leave one of them out"
    key = "lag" if own.lag else "cached" if own.cached else ""
    if key and (s.replay or s.adaptive):
        other = "replay" if s.replay else "adaptive"
        return f"sampler.{key}: {other} follows the training, which is later than the draws; leave one out"
    if own.lag >= s.collections:
        return (
            f"sampler.lag: at most {s.collections - 1} with {s.collections} collections, which is what "
            "cached: true does"
        )
    if own.cached and s.collections == 1:
        return "sampler.cached: a single collection is drawn from the initial student anyway; leave it out"
    return ""
