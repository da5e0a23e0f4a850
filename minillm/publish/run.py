"""Stage `publish`: one table or figure of registry.py, with a sidecar that says what it is made of."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from minillm.config.strict import hint
from minillm.errors import UserError
from minillm.files import write_json
from minillm.publish.origins import origins
from minillm.publish.published_numbers import numbers
from minillm.publish.registry import ITEMS
from minillm.publish.results import Found
from minillm.publish.settings import PublishSettings


def run_stage(settings: PublishSettings, name: str, run_folder: Path, out: Path, paper: Path | None = None) -> None:
    """The item `name` from the results in `run_folder` (results/<run>) into `out`; `paper` is the folder of published numbers.

    A table is NAME.csv, NAME.md and NAME.tex, a figure NAME.png and NAME.pdf; beside it NAME.json: caption, sources, n and, where
    nothing was measured, what is missing, and what the sources came from (origins.py).
    Raises UserError for a name that there is not, and where a result is damaged.
    """
    if name not in ITEMS:
        raise UserError(f"--name: there is no '{name}'; {hint(name, ITEMS)}")
    if settings.name != name:
        raise UserError(
            f"--name: '{name}', but --config holds the settings of '{settings.name}'; give the settings of '{name}'"
        )
    item = ITEMS[name]
    found = Found(settings, Path(run_folder), numbers(Path(paper or "config/paper")) if "paper" in item.needs else {})
    make = getattr(importlib.import_module(f"minillm.publish.{item.module}"), item.function)
    made: Any
    if item.kind == "table":
        from minillm.publish.tables.sheet import write

        made = make(found)
        write(made, Path(out), name)
    else:
        from minillm.publish.figures.drawing import fonts, save

        if settings.style is None:
            raise UserError(f"--config: no style; '{name}' is a figure and needs one")
        with fonts(settings.style):
            made = make(found)
            save(made.figure, settings.style, Path(out), name)
    write_json(
        Path(out) / f"{name}.json",
        {
            "name": name,
            "shows": item.shows,
            "caption": made.caption,
            "n": made.n,
            "missing": made.missing,
            "sources": found.sources,
            **origins(Path(run_folder), found.sources),
        },
    )
