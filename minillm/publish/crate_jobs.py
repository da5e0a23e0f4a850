"""The jobs of a run, as its crate describes them: which rule made which files, from which, when."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.errors import UserError
from minillm.files import CARD, PROVENANCE
from minillm.publish.origins import number_of, table_row
from minillm.publish.results import read_text
from minillm.readers import all_are, is_a, read_object


@dataclass
class Job:
    """One job; inputs and outputs are paths below the run's folder, of files that the crate holds.

    start, end: seconds since 1970, None if nobody recorded them.
    """

    rule: str
    name: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    start: float | None = None
    end: float | None = None
    # "s", "cpu_time", "max_rss" of a benchmark file.
    used: dict[str, float] = field(default_factory=dict)


def jobs_of(run: Path, kept: Collection[str]) -> list[Job]:
    """The jobs that made the files `kept` of results/<run>, `run`, by start and name.

    From Snakemake's own records next to results/ (.snakemake/metadata) if they are there, else those that
    left a benchmark file, without times and inputs.
    """
    jobs = list(_recorded(run, kept)) or list(_benchmarked(run, kept))
    for job in jobs:
        bench = next(filter(None, (layout.benchmark_of(path) for path in job.outputs)), "")
        row = table_row(read_text(run / bench) or "") if bench else {}
        numbers = {key: number_of(row.get(key)) for key in ("s", "cpu_time", "max_rss")}
        job.used = {key: value for key, value in numbers.items() if value is not None}
    return sorted(jobs, key=lambda job: (job.start or 0.0, job.name))


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()


def _recorded(run: Path, kept: Collection[str]) -> Iterator[Job]:
    """One job for all outputs that Snakemake wrote by one rule to one log."""
    jobs: dict[tuple[str, str], Job] = {}
    prefix = f"{layout.run_folder(run.resolve().name)}/"
    for output, record in _records(run.resolve().parents[1] / ".snakemake/metadata"):
        if not output.startswith(prefix):
            continue
        output = output.removeprefix(prefix)
        outputs = _held([output], kept)
        if not outputs:
            continue
        log = next(iter(record["log"]), "").removeprefix(prefix)
        match = re.fullmatch(layout.log("(.+)"), log)
        name = match[1] if match else output
        job = jobs.setdefault((record["rule"], name), Job(record["rule"], name))
        job.outputs = sorted({*job.outputs, *outputs})
        inputs = [path.removeprefix(prefix) for path in record["input"] if path.startswith(prefix)]
        job.inputs = sorted({*job.inputs, *_held(inputs, kept)})
        job.start, job.end = record.get("starttime"), record.get("endtime")
    yield from jobs.values()


def _records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(Output, its record) of each file in Snakemake's metadata; what is no such record is left out."""
    for path in sorted(folder.rglob("*")):
        # A long name is cut into folders that begin with @.
        name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        try:
            output = base64.b64decode(name, altchars=b"-_", validate=True).decode()
            record = read_object(path, {"rule": str, "input": list, "log": list}, "", "")
        except (UserError, binascii.Error, UnicodeDecodeError, IsADirectoryError):
            continue
        times = (record.get("starttime"), record.get("endtime"))
        texts = all_are(record["input"], str) and all_are(record["log"], str)
        if texts and all(value is None or is_a(value, (int, float)) for value in times):
            yield output, record


def _benchmarked(run: Path, kept: Collection[str]) -> Iterator[Job]:
    made: dict[str, list[str]] = {}
    for path in kept:
        made.setdefault(layout.benchmark_of(path), []).append(path)
    for bench, outputs in made.items():
        others = sorted(path for path in outputs if path != bench)
        if bench and others and (run / bench).is_file():
            match = re.fullmatch(layout.benchmark("(.+)"), bench)
            name = match[1] if match else bench
            yield Job(name.split("/")[0], name, outputs=others)


def _held(paths: list[str], kept: Collection[str]) -> list[str]:
    """Those that the crate holds; of a folder with a model or data its record, of a test set its card."""
    found: list[str] = []
    for path in paths:
        logs = (f"{path}/{name}" for name in (PROVENANCE, "metrics.jsonl", "selection.json", CARD))
        found += [p for p in (path, *logs, layout.card(path)) if p in kept]
    return found
