"""Methods made of settings: variants, and the catalogue of published ones (config/methods.yaml)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.onpolicy import OnPolicy, check_on_policy
from minillm.config.presets import combined, expanded
from minillm.config.sections import Training
from minillm.config.strict import STRICT, merged
from minillm.config.unused import unused, unused_in_training
from minillm.errors import UserError

# How long, how fast and on what scale a method is trained: what a configuration decides, not the method.  All
# other keys of the on-policy phase belong to a method, also those that are added later.
SCHEDULE = (
    *("lr", "collections", "rollouts", "batch", "inner_epochs", "coins", "backend", "temperature"),
    *("max_tokens", "normaliser", "lm_batch", "stop_length", "stop_kl", "schedule", "min_lr", "warmup"),
    *("weight_decay", "betas", "clip_norm", "dropout", "evaluations", "dev_rows"),
)


@dataclass(frozen=True, config=STRICT)
class Variant:
    """A method made of another one's settings: on-policy, from the same initial student, or supervised."""

    label: str = Field(description="Name in tables and figures.")
    settings: dict[str, Any] = Field(
        description="Keys of `stages.minillm`, or of the stage that `stage` names, that are replaced. They "
        "win over those of `per_model` too.",
    )
    stage: Literal["kd", "seqkd"] | None = Field(
        default=None, description="The supervised stage that it is trained by; `null`: `minillm`."
    )


@dataclass(frozen=True, config=STRICT)
class Method(Variant):
    """A published on-policy method: a variant whose other keys are the defaults, with its sources."""

    formula: str = Field(default="", description="Its loss or advantage in short, as text.")
    arxiv: str = Field(
        default="", pattern=r"^(\d{4}\.\d{5})?$", description="Number of the paper, such as `2605.07865`."
    )
    url: str = Field(default="", description="Address of what describes it, if that is not a paper on arXiv.")
    source: str = Field(default="", description="Equation of the paper, or file and function of the code.")
    exact: str = Field(default="", description="What here equals the source.")
    approximated: str = Field(default="", description="What here differs from the source.")
    missing: str = Field(default="", description="What of the source is left out, or could not be had.")


def method_settings(places: Sequence[dict[str, Any]], method: Method, where: str, under: str) -> OnPolicy:
    """A catalogue method's settings: its own keys, `SCHEDULE` from the configuration's `places`, defaults.

    So no key of `stages.minillm` turns it into another method.  Raises UserError as `combined` does.
    """
    values = {key: value for place in places for key, value in place.items()}
    schedule = {k: v for k, v in expanded(values, where, under).items() if k in SCHEDULE}
    return combined([schedule, method.settings], where, under)


def check_catalogue(catalogue: Mapping[str, Method], taken: Iterable[str], where: str) -> None:
    """Raises UserError, one line naming the entry, for settings that mean nothing, used or not.

    `taken`: names of methods and stages, which no entry may have.
    """
    taken = set(taken)
    for name, method in catalogue.items():
        key = f"catalogue.{name}"
        if name in taken:
            raise UserError(f"{where}: {key}: this is the name of a stage; choose another")
        if not (method.arxiv or method.url):
            raise UserError(f"{where}: {key}.arxiv: missing; give the paper's number, or a url")
        if method.stage:
            training = merged(Training(lr=1.0, epochs=1.0), method.settings, where, f"{key}.settings")
            if problem := unused_in_training(method.settings, training):
                raise UserError(f"{where}: {key}.settings.{problem}")
            continue
        for setting in method.settings:
            if setting in (*SCHEDULE, "semantics"):
                problem = "a method of the catalogue leaves this to the configuration; remove it"
                raise UserError(f"{where}: {key}.settings.{setting}: {problem}")
        # A share that grows at dev evaluations needs two of them, which the configuration decides.
        settings = combined([{"evaluations": 2}, method.settings], where, f"{key}.settings")
        check_on_policy(settings, where, f"{key}.settings")
        if problem := unused(method.settings, [settings]):
            raise UserError(f"{where}: {key}.settings.{problem}")


def named(catalogue: Mapping[str, Method], names: Iterable[str], known: Iterable[str]) -> dict[str, Method]:
    """Those of the catalogue that are among `names` and not among `known`, in the order of `names`."""
    known = set(known)
    return {name: catalogue[name] for name in names if name in catalogue and name not in known}


def facts(method: Method) -> dict[str, str]:
    """What is said of a method besides its settings."""
    return {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.name not in ("label", "settings", "stage")
    }
