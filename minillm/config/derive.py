"""From a whole configuration to what each stage depends on.

`stage_settings` cuts it out, and `canonical` turns it into the text of the stage's settings file.  So editing
one value of a configuration changes the files of exactly the stages that depend on it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from minillm.config.experiment import Experiment
from minillm.config.launch import Launch
from minillm.config.stages import entry_of
from minillm.config.strict import parse
from minillm.files import without_unset


def stage_settings(config: Experiment, stage: str, **names: Any) -> dict[str, Any]:
    """Exactly what one stage depends on, as plain data; `names` are those of stages.names_of.

    A variant is a stage, with the kind of settings of the one it builds on.  Raises ValueError if the stage
    has none.
    """
    entry = entry_of(stage, config.kinds)
    cls = entry.settings_class() if entry else None
    if cls is None:
        raise ValueError(f"the stage '{stage}' has no settings")
    settings: dict[str, Any] = without_unset(dataclasses.asdict(cls.of(config, stage, **names)))
    return settings


def canonical(settings: dict[str, Any]) -> str:
    """The same text for equal settings, whatever the order of their keys."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=True)


def launch_values(config: Experiment, stage: str, models: Sequence[str] = ()) -> dict[str, Any]:
    """Launch values of a job: `launch.default` < the stage's keys < those of its `models` for the stage."""
    values = {**config.launch.get("default", {}), **config.launch.get(stage, {})}
    for model in models:
        values |= config.per_model.get(model, {}).get("launch", {}).get(stage, {})
    return dataclasses.asdict(parse(Launch, values, "config", f"launch.{stage}"))
