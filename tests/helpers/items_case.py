"""An item of registry.py from a made-up run: its settings, its files, its figure."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from made_up_run import REPO, config
from matplotlib.figure import Figure

from minillm.config.derive import stage_settings
from minillm.config.strict import parse
from minillm.publish.figures.drawing import fonts
from minillm.publish.item_results import ItemResults
from minillm.publish.registry import ITEMS
from minillm.publish.run import run_stage
from minillm.publish.settings import PublishSettings

PAPER = REPO / "config/paper"


def settings(name: str, **changed: object) -> PublishSettings:
    return parse(PublishSettings, stage_settings(config(**changed), "publish", name=name), name)


def published_item(name: str, run: Path, out: Path, **changed: object) -> dict:
    """The sidecar of an item, all of whose files are there."""
    run_stage(settings(name, **changed), run_folder=run, out=out, paper=PAPER)
    for kind in ("csv", "md", "tex") if ITEMS[name].kind == "table" else ("png", "pdf"):
        assert (out / f"{name}.{kind}").stat().st_size
    return json.loads((out / f"{name}.json").read_text())


def text(name: str, run: Path, out: Path, kind: str = "md") -> str:
    published_item(name, run, out)
    return (out / f"{name}.{kind}").read_text()


def drawn(name: str, run: Path, **changed: object) -> Figure:
    """The figure itself."""
    item = settings(name, **changed)
    assert item.style is not None
    make = getattr(importlib.import_module(f"minillm.publish.{ITEMS[name].module}"), ITEMS[name].function)
    with fonts(item.style):
        return make(ItemResults(item, run)).figure
