"""results/<run>/index.html: what a run measured, on one page that needs no network and no other file.

The main table first, then every table and figure that was measured, with its caption and how to read it; at
the end, in one line each, what is missing and what would measure it.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from minillm.config import layout
from minillm.config.stages import MEASUREMENTS
from minillm.files import whole_file
from minillm.publish.registry import ITEMS, READING, Item
from minillm.readers import read_object, read_text

AGAIN = "remove it and make it again"
READ_MAIN = (
    "ROUGE-L measures how much of a reference a response has, in order; higher is better. Compare the "
    "students with each other; the teacher is what they imitate, not a limit."
)
# Where `sets` of a measurement is not a key but follows from one.
KEYS = {"judge.asked": "judge.tests", "human.counted": "human.test", "harness.files": "harness.tasks"}
# Raw HTML in a result is text, whatever it says.
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


def run_stage(*, run_folder: Path, out: Path) -> None:
    """Write the run's page to `out`.  Raises UserError, one line, if a result is damaged."""
    run = Path(run_folder)
    sidecars = {name: sidecar for name, item in ITEMS.items() if (sidecar := _sidecar(run, name, item))}
    shown = {name: sidecar for name, sidecar in sidecars.items() if not sidecar["missing"]}
    main = [
        _table(run, layout.table("main", "md")),
        f'<p class="reading">{_text(READ_MAIN)}</p>',
        _image(run / layout.figure("main", "png"), "The main table as bars"),
        _files([layout.table("main", "csv"), layout.table("main", "tex"), layout.figure("main", "pdf")]),
    ]
    title = f"Results of the run {run.resolve().name}"
    links = [("main", "Main table"), *((name, ITEMS[name].shows) for name in shown), ("missing", "Missing")]
    body = [
        f"<h1>{_text(title)}</h1>",
        "<nav>",
        *(f'<a href="#{name}">{_text(shows)}</a>' for name, shows in links),
        "</nav>",
        '<h2 id="main">Main table</h2>',
        *main,
        *(_section(run, name, sidecar) for name, sidecar in shown.items()),
        '<h2 id="missing">Not measured in this run</h2>',
        "<ul>",
        *(f"<li>{_missing(name, sidecars[name])}</li>" for name in sidecars if name not in shown),
        "</ul>",
        f"<p class='files'>Every measured number: {_link(layout.metrics_table())}. Training: "
        f"{_link(layout.curves())}. Provenance of each result: {_link(layout.report())}, "
        f"{_link(layout.index())}.</p>",
    ]
    style = files("minillm.publish").joinpath("page.css").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>\n{style}</style>'
    page = f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>\n" + "\n".join(body)
    with whole_file(out) as partial:
        partial.write_text(page + "\n</body></html>\n", encoding="utf-8")


def _sidecar(run: Path, name: str, item: Item) -> dict[str, Any] | None:
    """The item's sidecar; None if it was not made."""
    path = run / (layout.table if item.kind == "table" else layout.figure)(name, "json")
    if not path.exists():
        return None
    kinds = {"shows": str, "caption": str, "n": str, "missing": str}
    return read_object(path, kinds, "no such file", AGAIN)


def _section(run: Path, name: str, sidecar: dict[str, Any]) -> str:
    """One table or figure: what it shows, itself, how to read it, its files."""
    parts = [f'<h2 id="{name}">{_text(sidecar["shows"])}</h2>']
    if ITEMS[name].kind == "table":
        parts.append(_table(run, layout.table(name, "md")))
        kinds = [layout.table(name, kind) for kind in ("csv", "tex", "json")]
    else:
        parts.append(_image(run / layout.figure(name, "png"), sidecar["shows"]))
        parts.append(f'<p class="notes">{_text(sidecar["caption"])} {_text(sidecar["n"])}</p>')
        kinds = [layout.figure(name, kind) for kind in ("pdf", "json")]
    return "\n".join([*parts, f'<p class="reading">{_text(READING[name])}</p>', _files(kinds)])


def _missing(name: str, sidecar: dict[str, Any]) -> str:
    """What is missing, and the keys that would measure it if that is all that it lacks."""
    keys = [MEASUREMENTS[kind].sets for kind in ITEMS[name].needs if kind in MEASUREMENTS]
    keys = [KEYS.get(key, key) for key in dict.fromkeys(keys) if not key.startswith("scored.")]
    if sidecar["missing"].startswith("not measured:"):
        # Other models, methods or sizes, as that text says.
        keys = []
    needs = f" Set {' and '.join(f'<code>{key}</code>' for key in keys)} to measure it." if keys else ""
    return f"{_text(sidecar['shows'])}: {_text(sidecar['missing'])}.{needs}"


def _table(run: Path, path: str) -> str:
    """A table's Markdown as HTML; its notes small."""
    page = MARKDOWN.render(read_text(run / path, "no such file; make it again", AGAIN))
    # The only mark-up in our own cells is a line break, which comes out escaped.
    page = page.replace("&lt;br&gt;", "<br>")
    table, end, notes = page.rpartition("</table>")
    return f"{table}{end}<div class='notes'>{notes}</div>" if end else page


def _image(path: Path, shows: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{_text(shows)}" src="data:image/png;base64,{data}">'


def _files(paths: Sequence[str]) -> str:
    return f"<p class='files'>Files: {', '.join(map(_link, paths))}</p>"


def _link(path: str) -> str:
    return f'<a href="{_text(path)}">{_text(path)}</a>'


def _text(text: str) -> str:
    return html.escape(text)
