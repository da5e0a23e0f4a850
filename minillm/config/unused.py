"""Keys that a configuration sets and nothing reads: parameters of a part that is not chosen.

Only what is written is looked at, so defaults and presets are no fault.  A key that several methods share is
one only if none of them reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Training

# Divergence -> the parameter that it has.
PARAMETERS = {"jensen_shannon": "beta", "skew_forward_kl": "skew", "skew_reverse_kl": "skew"}
# Keys of the policy gradient.
LONG_TERM = (
    *("advantage", "single_step", "single_step_weights", "include_current", "gamma", "length_norm"),
    *("whiten", "reward_scale", "reward_clip", "surrogate", "clip", "importance"),
)


def _parameter(s: OnPolicy, key: str) -> str:
    return "" if PARAMETERS.get(s.objective) == key else f"objective '{s.objective}' has no such parameter"


def _long_term(s: OnPolicy, key: str) -> str:
    if s.objective != "minillm":
        return f"it belongs to objective 'minillm', not to '{s.objective}'"
    if key == "single_step_weights" and not s.single_step:
        return "single_step: false leaves out what it weighs"
    if key == "reward_clip" and s.advantage == "expected":
        return "advantage 'expected' takes means in place of rewards, which are not clipped"
    return ""


def _text(s: OnPolicy, _: str) -> str:
    return "" if s.lm_coef else "lm_coef: 0.0 leaves plain text out"


def _coins(s: OnPolicy, _: str) -> str:
    return "" if s.teacher_reads else "the teacher reads no response while it is drawn"


def _min_lr(s: OnPolicy, _: str) -> str:
    return "" if s.schedule == "cosine" else f"schedule '{s.schedule}' has no such parameter"


def _replay(s: OnPolicy, _: str) -> str:
    answers = s.student_share > 0 or s.adaptive
    return "" if answers or not s.replay else "with student_share: 0.0 there are no samples to replay"


def _weight(s: OnPolicy, _: str) -> str:
    return _of_signal(s.objective)


def _of_signal(objective: str) -> str:
    known = objective == "squared_log_ratio"
    return "" if known else f"objective '{objective}' has weights of its own"


# Key -> why it changes nothing under some settings; "" if it does.
WHY: dict[str, Callable[[OnPolicy, str], str]] = {
    **dict.fromkeys(PARAMETERS.values(), _parameter),
    **dict.fromkeys(LONG_TERM, _long_term),
    **dict.fromkeys(("lm_kd_ratio", "lm_batch"), _text),
    "coins": _coins,
    "min_lr": _min_lr,
    "replay": _replay,
    "signal.weight": _weight,
}


def unused(written: Mapping[str, Any], settings: Sequence[OnPolicy]) -> str:
    """The first key of `written` that none of `settings`, made with them, reads, and why; "" if all are read.

    A key that is null is not written.  `written` must have been parsed.
    """
    for key in _keys(written):
        reasons = [WHY[key](s, key) for s in settings]
        if reasons and all(reasons):
            return f"{key}: {reasons[0]}; leave it out"
    return _inside(written)


def _keys(written: Mapping[str, Any]) -> list[str]:
    signal = written.get("signal") or {}
    names = [*written, *(f"signal.{key}" for key in signal)]
    return [name for name in names if name in WHY and written.get(name, True) is not None]


def _inside(written: Mapping[str, Any]) -> str:
    """Of parts that have an objective or a switch of their own."""
    taid = written.get("taid") or {}
    fixed = [key for key in ("step", "momentum") if key in taid and not taid.get("adaptive", True)]
    if fixed:
        return f"taid.{fixed[0]}: adaptive: false moves the target on a line; leave it out"
    terms = {f"also.{i}": term for i, term in enumerate(written.get("also") or ())}
    if written.get("teacher_texts") is not None:
        terms["teacher_texts"] = {"objective": "skew_forward_kl", **written["teacher_texts"]}
    for name, term in terms.items():
        objective = term["objective"]
        for key in dict.fromkeys(PARAMETERS.values()):
            if key in term and PARAMETERS.get(objective) != key:
                return f"{name}.{key}: objective '{objective}' has no such parameter; leave it out"
        if "weight" in (term.get("signal") or {}) and (reason := _of_signal(objective)):
            return f"{name}.signal.weight: {reason}; leave it out"
    return ""


def unused_in_training(written: Mapping[str, Any], settings: Training) -> str:
    """The same for a supervised variant's keys."""
    if "kd_ratio" in written and settings.loss != "kd":
        return f"kd_ratio: loss '{settings.loss}' has no such parameter; leave it out"
    return ""
