"""Tables, figures and metrics.csv made again from the metrics, and compared with those of the run."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minillm.config import layout
from minillm.config.stages import STAGES
from minillm.files import RECORD
from minillm.publish.registry import ITEMS
from minillm.readers import read_object
from minillm.verify.findings import Findings
from minillm.verify.metrics import EXACT, compare
from minillm.verify.run_folder import AGAIN, Run

# A drawing's bytes depend on fonts and versions: records.py compares them with the hash in the sidecar.
TEXTS = (".csv", ".md", ".tex", ".json")
PAPER = Path("config/paper")


# (Key of its settings file, folder that it goes into, what makes it into another one from its settings.)
Job = tuple[str, str, Callable[[Path, Any], None]]


def jobs(folder: Path, kinds: Collection[str] = ("table", "figure")) -> Iterator[Job]:
    """What makes the tables (and figures) of the run in `folder`, and metrics.csv."""
    paper = {"paper": PAPER if PAPER.is_dir() else None}
    places = {"table": layout.tables(), "figure": layout.figures()}
    yield "table", places["table"], lambda out, s: _call("table", s, run_folder=folder, out=out, **paper)
    for name, item in ITEMS.items():
        if item.kind in kinds:
            yield (
                f"publish/{name}",
                places[item.kind],
                lambda out, s: _call("publish", s, run_folder=folder, out=out, **paper),
            )
    csv = layout.metrics_table()
    yield "metrics", "", lambda out, s: _call("metrics", s, run_folder=folder, out=out / csv)
    yield "estimators", "", lambda out, s: _call("estimators", s, out=out)


def check_published(run: Run, findings: Findings) -> None:
    """Each one whose settings file is there."""
    for key, place, make in jobs(run.folder):
        _again(run, findings, key, place, make)
    _index(run, findings)
    findings.skip("report.html and main.png", "Snakemake's report and drawings without a record")
    # It names licences as the hub's cache of the machine had them.
    if (run.folder / layout.checklist()).exists():
        findings.skip("checklist.md", "it has no record")


def _index(run: Run, findings: Findings) -> None:
    """The list of results, which has no settings."""
    ours = run.folder / layout.index()
    if not ours.exists():
        return
    with TemporaryDirectory() as temporary:
        made = Path(temporary) / layout.index()
        try:
            STAGES["index"].entry_point()(run_folder=run.folder, out=made)
        except Exception as error:
            findings.failed(ours, error)
            return
        _compare(findings, ours, made)


def _call(stage: str, settings: Any, **paths: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        STAGES[stage].entry_point()(settings, **paths)


def _again(run: Run, findings: Findings, key: str, place: str, make: Callable[[Path, Any], None]) -> None:
    """Make files from the settings `key` into an empty folder and compare each with that in `place`."""
    if not (run.folder / layout.settings_file(key)).is_file():
        return
    with TemporaryDirectory() as temporary:
        try:
            make(Path(temporary), run.settings(key))
        except Exception as error:
            # As in `each`.
            findings.failed(run.folder / layout.settings_file(key), error)
            return
        for path in sorted(Path(temporary).rglob("*")):
            if path.suffix in TEXTS and path.is_file():
                _compare(findings, run.folder / place / path.relative_to(temporary), path)


def _compare(findings: Findings, ours: Path, made: Path) -> None:
    if not ours.is_file():
        findings.differs(ours, "is missing")
        return
    findings.checked["tables and their records"] += 1
    if made.suffix == ".json":
        _compare_sidecars(findings, ours, made)
        return
    recorded, found = (path.read_bytes().decode("utf-8", "replace").split("\n") for path in (ours, made))
    lines = enumerate(zip(recorded, found, strict=False), 1)
    number = next((n for n, (a, b) in lines if a != b), None)
    if number is not None:
        findings.differs(
            ours, f"line {number} is not what its metrics give: {_around(recorded, found, number)}"
        )
    elif len(recorded) != len(found):
        findings.differs(ours, f"{len(recorded)} lines, but its metrics give {len(found)}")


def _around(recorded: list[str], found: list[str], number: int) -> str:
    """Both lines from where they begin to differ."""
    a, b = recorded[number - 1], found[number - 1]
    first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, first - 20)
    return f"{a[start : first + 20]!r}, not {b[start : first + 20]!r}"


def _compare_sidecars(findings: Findings, ours: Path, made: Path) -> None:
    recorded, found = (read_object(path, {}, "no such file", AGAIN) for path in (ours, made))
    for value in (recorded, found):
        # Of this drawing, and the record's own.
        for key in ("files", RECORD, "settings_sha256"):
            value.pop(key, None)
    differing = list(compare(recorded, found, EXACT))
    if differing:
        findings.differs(ours, differing[0])
