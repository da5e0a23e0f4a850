"""Presets of the on-policy phase: the objective as in the paper and as in the released code.

A preset only sets keys of `OnPolicy`; whatever the configuration itself sets wins, wherever it does so:
preset < stage < model < variant.  docs/method.md has the table key -> paper -> released code -> default, with
the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.config.onpolicy import OnPolicy
from minillm.config.strict import hint, parse
from minillm.errors import UserError

PAPER = {
    "single_step": True,
    "single_step_weights": True,  # D1
    "include_current": False,  # D2
    "gamma": 1.0,  # D3
    "length_norm": True,  # D5
    "whiten": "none",  # D6
    "reward_scale": 1.0,  # D7
    "reward_clip": 0.0,
    "surrogate": "paper",  # D8
    "clip": 0.2,
    "importance": "token",  # D9
    "lm_coef": 1.0,  # D10
    "lm_kd_ratio": 0.0,
    "dropout": False,  # D12; the paper does not say
    "normaliser": "sequences",
    # Section 4.1 of the paper's appendix: 5000 steps of 64 sentences, 256 per collection, 4 inner epochs.
    "lr": 5e-6,
    "rollouts": 256,
    "batch": 64,
    "inner_epochs": 4,
    "collections": 312,
}
RELEASED = {
    "single_step": True,
    "single_step_weights": False,
    "include_current": True,
    "gamma": 0.95,
    "length_norm": True,
    "whiten": "positions",
    "reward_scale": 0.5,
    "reward_clip": 100.0,
    "surrogate": "ppo",
    "clip": 0.2,
    "importance": "token",
    "lm_coef": 1.0,
    "lm_kd_ratio": 0.5,
    "dropout": False,
    "normaliser": "tokens",
    # Since Nov. 2023, GPT-2 120M: one mini-batch per inner epoch (D16), ten passes over 11,435 prompts (D17).
    "lr": 5e-6,
    "rollouts": 256,
    "batch": 256,
    "inner_epochs": 4,
    "collections": 447,
}
# With the schedule that made the published numbers (D16, D17).
FIRST_RELEASE = RELEASED | {"batch": 64, "collections": 312}

PRESETS: dict[str, dict[str, Any]] = {
    # The defaults of OnPolicy.
    "default": {},
    "paper": PAPER,
    "released": RELEASED,
    "first_release": FIRST_RELEASE,
}


def expanded(values: dict[str, Any], where: str, under: str) -> dict[str, Any]:
    """`values`, with the keys that are missing filled in from their preset (`semantics`).

    Raises UserError for an unknown preset.
    """
    name = str(values.get("semantics", "default"))
    if name not in PRESETS:
        raise UserError(f"{where}: {under}.semantics: unknown preset '{name}'; {hint(name, PRESETS)}")
    return {**PRESETS[name], **values}


def combined(places: Sequence[dict[str, Any]], where: str, under: str) -> OnPolicy:
    """Settings from the keys that places of a configuration set: later ones win, and any beats the preset.

    Raises UserError, one line naming `where` and the key below `under`.
    """
    values = {key: value for place in places for key, value in place.items()}
    return parse(OnPolicy, expanded(values, where, under), where, under)
