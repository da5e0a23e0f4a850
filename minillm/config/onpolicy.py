"""Settings of the on-policy phase, and their presets: the objective as the paper states it, and as the released code computes it.

A preset only sets keys of `OnPolicy`; whatever a configuration says itself stays as it says, wherever it says it: preset < stage <
model < variant.  docs/method.md has the table key -> paper -> released code -> default, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Count, Natural, Positive, Share, hint, parse
from minillm.errors import UserError


@dataclass(frozen=True, config=STRICT)
class OnPolicy:
    """The on-policy phase: where samples come from, which loss is taken on them, and how to train (docs/method.md).

    `semantics` names a preset (onpolicy.py) that fills in what is given nowhere.  `collections` times, `rollouts` prompts are
    answered, then follow `inner_epochs` passes over them in mini-batches of `batch`.

    Samples: `alpha` is the teacher's share in the sampling mixture (Eq. 4).  `student_share` of the rows are answered by the
    student (GKD's lambda), the others keep their gold response; `adaptive` raises this share by 0.1 whenever the dev loss has risen
    by 0.1.  `replay` is the capacity of a buffer of earlier samples, which takes over as training goes on (DistiLLM); 0: none.

    Loss: `objective` "minillm" is single-step plus long term; every other is the mean of that divergence on the samples
    (`beta` is the Jensen-Shannon's, `skew` the alpha of the skewed ones).  `advantage` is that of the long term: "returns"; "expected":
    each following reward replaced by its conditional mean, minus the reverse KL of its position; "centred": this reward too,
    plus the reverse KL here, which is its baseline, and stands for the single-step term.  Without `single_step` the long term has
    this token's reward only with `include_current`, or where it is "centred".  `clip` 0 and `reward_clip` 0 are none.  `lm_coef`
    weighs the pre-training loss, in which `lm_kd_ratio` is the share of forward KL to the teacher.

    Guard, off at 0: `init_kl` weighs a reverse KL to the initial student; training stops where the mean length of a collection exceeds
    `stop_length` times the first one's or falls below that part of it, or its reverse KL exceeds `stop_kl` times the first one's.
    """

    semantics: Literal["default", "paper", "released", "first_release"] = "default"
    lr: Positive = 5e-6
    collections: Count = 312
    rollouts: Count = 256
    batch: Count = 64
    inner_epochs: Count = 4
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.2
    temperature: Positive = 1.0
    max_tokens: Count = 256
    student_share: Share = 1.0
    adaptive: bool = False
    replay: Natural = 0
    objective: Literal[
        "minillm", "forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl", "skew_reverse_kl", "total_variation"
    ] = "minillm"
    beta: Share = 0.5
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    advantage: Literal["returns", "expected", "centred"] = "returns"
    single_step: bool = True
    single_step_weights: bool = True
    include_current: bool = False
    gamma: Share = 1.0
    length_norm: bool = True
    whiten: Literal["none", "tokens", "positions"] = "tokens"
    reward_scale: Positive = 1.0
    reward_clip: Annotated[float, Field(ge=0)] = 0.0
    surrogate: Literal["ppo", "paper"] = "ppo"
    clip: Annotated[float, Field(ge=0)] = 0.2
    importance: Literal["token", "product", "none"] = "token"
    normaliser: Literal["tokens", "sequences"] = "tokens"
    lm_coef: Annotated[float, Field(ge=0)] = 1.0
    lm_kd_ratio: Share = 0.5
    lm_batch: Natural = 0
    init_kl: Annotated[float, Field(ge=0)] = 0.0
    stop_length: Annotated[float, Field(ge=0)] = 0.0
    stop_kl: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr: Annotated[float, Field(ge=0)] = 1e-7
    warmup: Natural = 100
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip_norm: Positive = 1.0
    dropout: bool = False
    evaluations: Count = 1
    dev_rows: Natural = 0


@dataclass(frozen=True, config=STRICT)
class Variant:
    """An on-policy method beside MiniLLM: its settings with these keys of `OnPolicy` replaced, from the same initial student."""

    label: str
    settings: dict[str, Any]


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
    # section 4.1 of the paper's appendix: 5000 steps of 64 sentences, 256 a collection, 4 inner epochs
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
    # since November 2023, GPT-2 120M: one mini-batch an inner epoch (D16) and ten passes over 11,435 prompts (D17)
    "lr": 5e-6,
    "rollouts": 256,
    "batch": 256,
    "inner_epochs": 4,
    "collections": 447,
}
FIRST_RELEASE = RELEASED | {"batch": 64, "collections": 312}  # the schedule that made the published numbers (D16, D17)

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},  # the defaults of OnPolicy
    "paper": PAPER,
    "released": RELEASED,
    "first_release": FIRST_RELEASE,
}


def expanded(values: dict[str, Any], where: str, under: str) -> dict[str, Any]:
    """`values` with the keys of their preset (`semantics`) filled in where they are not given.

    Raises UserError for a preset that there is not.
    """
    name = str(values.get("semantics", "default"))
    if name not in PRESETS:
        raise UserError(f"{where}: {under}.semantics: there is no preset '{name}'; {hint(name, PRESETS)}")
    return {**PRESETS[name], **values}


def combined(given: Sequence[dict[str, Any]], where: str, under: str) -> OnPolicy:
    """Settings from the keys that each place of a configuration gives, a later place before an earlier one, the preset before none.

    Raises UserError, one line naming `where` and the key below `under`.
    """
    values = {key: value for place in given for key, value in place.items()}
    return parse(OnPolicy, expanded(values, where, under), where, under)


def check_on_policy(settings: OnPolicy, where: str, under: str) -> None:
    """Refuse combinations that mean nothing, in one line."""
    problem = ""
    if settings.rollouts % settings.batch:
        problem = f"batch: {settings.rollouts} rollouts are not a whole number of mini-batches of {settings.batch}"
    elif settings.objective == "minillm" and (settings.student_share < 1 or settings.adaptive or settings.replay):
        key = "student_share" if settings.student_share < 1 else "adaptive" if settings.adaptive else "replay"
        problem = f"{key}: the long term needs samples of the present student; choose another objective or leave this off"
    elif settings.advantage == "centred" and settings.single_step:
        problem = "advantage: 'centred' stands for the single-step term; set single_step: false"
    elif settings.advantage == "expected" and settings.include_current:
        problem = "advantage: 'expected' is of the rewards that follow, not of the token's own; set include_current: false"
    elif settings.adaptive and (settings.student_share == 1 or settings.evaluations < 2):
        problem = (
            "adaptive: the share of samples grows at dev evaluations; set student_share below 1 and evaluations to 2 or more"
        )
    elif limit := next((key for key in ("stop_length", "stop_kl") if 0 < getattr(settings, key) <= 1), ""):
        problem = f"{limit}: it is a factor above 1, or 0 for none"
    if problem:
        raise UserError(f"{where}: {under}.{problem}")
