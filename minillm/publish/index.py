"""results/<run>/index.md: one line per result, from the JSON sidecars of tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.files import whole_file
from minillm.publish.registry import ITEMS
from minillm.publish.style import DASH, markdown
from minillm.readers import read_object

MAIN = (
    (layout.table("main", "md"), "Table 1: ROUGE-L, method by test set"),
    (layout.figure("main", "png"), "Table 1 as bars"),
    (layout.table("estimators", "md"), "Bias and variance of gradient estimators"),
    (layout.figure("estimators", "png"), "The same, drawn"),
)
METRICS = (layout.metrics_table(), "Every measured number, in one tidy table")
CHECKLIST = (layout.checklist(), "What this run says to the items of two checklists for papers")
REPORT = (layout.report(), "Snakemake's report of the run: all of this in one file")


def run_stage(*, run_folder: Path, out: Path) -> None:
    """Write the run's index.md to `out`: for each result a link, what it shows, n and its state.

    A table or figure that was not made is listed as such.  Raises UserError if a sidecar is damaged.
    """
    run = Path(run_folder)
    lines = [
        f"# Results of the run {markdown(run.resolve().name)}",
        "",
        "| Result | Shows | n | State |",
        "|:--|:--|:--|:--|",
    ]
    for path, shows in MAIN:
        if (run / path).exists():
            lines.append(_line(Path(path).stem, path, shows, "", "made"))
    for name, item in ITEMS.items():
        path_of, kind = (layout.table, "md") if item.kind == "table" else (layout.figure, "png")
        sidecar = _sidecar(run / path_of(name, "json"))
        if sidecar is None and (item.if_asked or item.if_set):
            continue
        if sidecar is None:
            lines.append(_line(name, "", item.shows, "", "not made"))
        else:
            state = (
                f"missing: {sidecar['missing']}"
                if sidecar["missing"]
                else "measured"
                if sidecar["sources"]
                else "contains no measurement"
            )
            lines.append(_line(name, path_of(name, kind), sidecar["shows"], sidecar["n"], state))
    for page in sorted(path.relative_to(run).as_posix() for path in run.glob(layout.human_page("**", "*"))):
        name = page.split("/", 1)[1].removesuffix(".html")
        lines.append(_line(f"page {name}", page, "Blind pairs for annotators", "", "made"))
    lines.append(_line("metrics", *METRICS, "", "made with the tables"))
    # Runs of earlier versions have none.
    if (run / layout.checklist()).exists():
        lines.append(_line("checklist", *CHECKLIST, "", "made"))
    lines.append(_line("report", *REPORT, "", "made from this list"))
    with whole_file(out) as partial:
        partial.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _sidecar(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    keys = {"shows": str, "n": str, "missing": str, "sources": list}
    return read_object(path, keys, "no such file", "make it again")


def _line(name: str, path: str, shows: str, n: str, state: str) -> str:
    link = f"[{markdown(name)}]({path})" if path else markdown(name)
    return f"| {link} | {markdown(shows)} | {markdown(n) or DASH} | {markdown(state)} |"
