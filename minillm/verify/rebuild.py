"""`minillm rebuild ARCHIVE`: the tables of a run from its archive (publish/archive.py), without a model."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from minillm.config import layout
from minillm.errors import UserError
from minillm.publish.archive import changed_files, read_list, unpack
from minillm.verify.findings import Findings
from minillm.verify.published import jobs
from minillm.verify.run_folder import Run

# Next to results/: what was made again.
REBUILT = "rebuilt"


def rebuild(folder: Path, figures: bool = False) -> Findings:
    """Make tables/ and metrics.csv (with `figures` also the drawings) of an unpacked archive again.

    They go into `folder`/rebuilt, and are compared with the archived ones byte by byte; drawings are not,
    since they depend on fonts.  A listed file that has changed is a difference.  Raises UserError if the
    folder is no archive.
    """
    record = read_list(folder)
    findings = Findings(Path(layout.run_folder(record["run"])))
    for name in changed_files(folder, record):
        findings.differs(name, "has changed since it was archived")
    findings.checked["files with the archive's list"] += len(record["files"])
    # Recorded paths are relative to it, and published numbers are in it.
    with _inside(folder):
        rebuilt = Path(REBUILT)
        shutil.rmtree(rebuilt, ignore_errors=True)
        run = Run(findings.folder)
        for key, place, make in jobs(run.folder, ("table", "figure") if figures else ("table",)):
            if (run.folder / layout.settings_file(key)).is_file():
                try:
                    make(rebuilt / place, run.settings(key))
                except Exception as error:
                    # Whatever a damaged file makes a stage do is a finding.
                    findings.failed(run.folder / layout.settings_file(key), error)
        _compare(run.folder, rebuilt, findings)
    return findings


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _compare(archived: Path, rebuilt: Path, findings: Findings) -> None:
    """The rebuilt tables with the archived ones, and that there are no others."""
    files = {path.relative_to(rebuilt) for path in rebuilt.rglob("*") if path.is_file()}
    ours = {path for path in files if path.parts[0] != layout.figures()}
    if files - ours:
        findings.checked["drawings, made but not compared"] += len(files - ours)
    theirs = {path.relative_to(archived) for path in (archived / layout.tables()).glob("*")}
    for path in sorted(ours | theirs | {Path(layout.metrics_table())}):
        place = archived / path
        if path not in ours:
            findings.differs(place, "is in the archive, but nothing of the archive makes it")
        elif not place.is_file():
            findings.differs(place, "is not in the archive")
        else:
            findings.checked["tables byte by byte"] += 1
            if place.read_bytes() != (rebuilt / path).read_bytes():
                findings.differs(place, f"is not what the archive gives ({REBUILT}/{path.as_posix()})")


def main(archive: Path, out: Path | None, figures: bool) -> int:
    """Unpack `archive` into `out` if it is a file, rebuild, print what differs; 1 if anything does."""
    if not archive.is_dir():
        if out is None:
            raise UserError(f"{archive}: is to be unpacked; name a new folder for it with -o")
        unpack(archive, out)
        archive = out
    elif out is not None:
        raise UserError(f"{archive}: is unpacked already, and made again where it is; leave -o away")
    findings = rebuild(archive, figures)
    print("\n".join([*findings.differences, *findings.summary()]))
    return 1 if findings.differences else 0
