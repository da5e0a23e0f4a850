"""What tables and figures read of a metric file, besides the frame: curves, bins, scores of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minillm.readers import all_are, is_a

NUMBER = (int, float)


def wrong_part(kind: str, content: Mapping[str, Any]) -> str:
    """The key of a metric file of this kind that is missing, of the wrong type or length; "" if none is."""
    for key, is_right in SHAPES.get(kind, {}).items():
        if not is_right(content.get(key), content):
            return key
    return ""


def _gaps(values: Any) -> bool:
    """Whether this is a list of numbers, some of which may be missing."""
    return isinstance(values, list) and all(value is None or is_a(value, NUMBER) for value in values)


def _curve(values: Any, content: Mapping[str, Any]) -> bool:
    return _gaps(values) and len(values) == len(content["lengths"])


def _band(values: Any, content: Mapping[str, Any]) -> bool:
    return values is None or _curve(values, content)


def _draws(values: Any, content: Mapping[str, Any]) -> bool:
    """Length -> a value for each draw."""
    return values is None or (
        isinstance(values, dict)
        and all(length.isdecimal() and 0 < int(length) <= len(content["lengths"]) for length in values)
        and all(map(_gaps, values.values()))
    )


def _scores(values: Any, content: Mapping[str, Any]) -> bool:
    """Sampling seed -> a score for each row."""
    return isinstance(values, dict) and all(
        all_are(scores, NUMBER) and len(scores) == len(content["ids"]) for scores in values.values()
    )


def _edges(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(b, dict) and is_a(b.get("low"), int) and (b.get("high") is None or is_a(b["high"], int))
        for b in values
    )


def _bins(values: Any) -> bool:
    """Bins; an empty one has no confidence."""
    return isinstance(values, list) and all(
        isinstance(b, dict)
        and is_a(b.get("n"), int)
        and (not b["n"] or (is_a(b.get("confidence"), NUMBER) and is_a(b.get("accuracy"), NUMBER)))
        for b in values
    )


def _per_row(kind: Any) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda values, content: all_are(values, kind) and len(values) == len(content["ids"])


def _optional(kind: Any) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, content: value is None or is_a(value, kind)


# Kind of metric -> key -> whether its value (and the file's other keys, checked before it) are right.
SHAPES: dict[str, dict[str, Callable[[Any, Mapping[str, Any]], bool]]] = {
    "rouge": {"ids": lambda values, _: all_are(values, int), "scores": _scores},
    "exposure_bias": {
        "n": _optional(int),
        "lengths": lambda values, _: all_are(values, int),
        "ex_acc_err": _curve,
        "low": _band,
        "high": _band,
        "mean_at": _optional(int),
        "level": _optional(NUMBER),
        "draws": _draws,
    },
    "lengths": {
        "ids": lambda values, _: all_are(values, int),
        "scores": _per_row(NUMBER),
        "reference_tokens": _per_row(int),
        "buckets": lambda values, _: _edges(values),
    },
    "calibration": {"bins": lambda values, _: _bins(values)},
    "harness": {
        "lm_eval": lambda value, _: is_a(value, str),
        "fewshot": _optional(int),
        "limit": _optional(int),
    },
    "judge": {"stand_in": _optional(bool), "judge": _optional((str, dict))},
}
