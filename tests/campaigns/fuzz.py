"""`make fuzz`: damaged files for every reader of the package; each ends in one clear line or a right result.

Seeded.  A right result is the undamaged file's value if the damage changed nothing in what the file means.
Anything else fails: another exception, a message of several lines, a hang, a file left half-written, an
input that was changed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / "helpers"),
    str(Path(__file__).resolve().parents[2]),
]

from minillm.errors import UserError  # noqa: E402
from tests.campaigns.damage import Damage, damaged  # noqa: E402
from tests.campaigns.target import Target, files_below  # noqa: E402
from tests.campaigns.targets import targets  # noqa: E402

# Seconds that one reader may take for a small file.
LONGEST = 20
# Characters of a message.
WIDEST = 1100


@dataclass
class Report:
    """Counts over all cases, and what failed."""

    counts: Counter[str] = field(default_factory=Counter)
    lines_of: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"{counts['cases']} cases over {len(self.lines_of)} readers, {counts['parsed']} past the parser; "
            f"{counts['line']} clear lines, {counts['right']} right results, {len(self.failures)} failed"
        )


class Hang(Exception):
    """A reader that took longer than `LONGEST`."""


def campaign(cases: int, start: int = 0, seconds: float = 540, names: str = "") -> Report:
    """Damage `cases` files, drawn by the seed `start`, for at most `seconds`.

    names: only readers whose names contain it.
    """
    report = Report()
    chosen = [target for target in targets() if names in target.name]
    with tempfile.TemporaryDirectory() as name:
        expected = [_value(target, Path(name) / str(i)) for i, target in enumerate(chosen)]
    until = time.monotonic() + seconds

    @seed(start)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        if time.monotonic() > until:
            return
        i = data.draw(st.integers(0, len(chosen) - 1))
        target = chosen[i]
        name = data.draw(st.sampled_from(target.damaged or tuple(target.files)))
        _try(report, target, name, damaged(data.draw, name, target.files[name]), expected[i])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one()
    return report


def _value(target: Target, folder: Path) -> Any:
    _write(folder, target.files)
    return target.read(folder)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _try(report: Report, target: Target, name: str, damage: Damage, expected: Any) -> None:
    """One case: read the damaged file in a folder of its own."""
    report.counts["cases"] += 1
    report.lines_of[target.name] += 1
    report.counts["parsed"] += _parses(name, damage.content)
    same = damage.same or damage.content == target.files[name]
    files = target.files | {name: damage.content}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write(folder, files)
        outcome, problem = _outcome(lambda: target.read(folder), expected, same)
        after = files_below(folder)
    if not problem and {key: after.get(key) for key in files} != files:
        problem = "an input was changed"
    left = [key for key in after if key not in files and (outcome == "line" or ".partial" in key)]
    if not problem and left:
        problem = f"left over: {left}"
    if problem:
        report.failures.append(
            f"{target.name}: {name}: {damage.what}: {problem}\n    {damage.content[:300]!r}"
        )
    else:
        report.counts[outcome] += 1


def _outcome(read: Callable[[], Any], expected: Any, same: bool) -> tuple[str, str]:
    """("line" or "right", "") or ("", what went wrong)."""
    old = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        value = read()
    except UserError as error:
        text = str(error)
        if same:
            return "", f"refused, but it means the same: {text}"
        clear = text.strip() and len(text.splitlines()) == 1 and len(text) <= WIDEST
        return ("line", "") if clear else ("", f"not one short line: {text[:200]!r}")
    # KeyboardInterrupt passes; a reader's SystemExit is a failure too.
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = [
            f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]
        ]
        return "", f"{type(error).__name__}: {str(error)[:150]} ({' > '.join(where)}, {place.line})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    if same and value != expected:
        return "", "another value, but it means the same"
    return "right", ""


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {LONGEST} s")


def _parses(name: str, content: bytes) -> bool:
    """Whether the format's own parser takes the damaged file: then the reader's checks are what is tried."""
    try:
        ending = PurePath(name).suffix
        if ending == ".gz":
            return _parses(name.removesuffix(".gz"), gzip.decompress(content))
        if ending == ".npy":
            np.load(io.BytesIO(content))
        elif ending == ".json":
            json.loads(content)
        elif ending == ".jsonl":
            for line in content.removesuffix(b"\n").split(b"\n"):
                json.loads(line)
        elif ending == ".yaml":
            yaml.safe_load(content)
        elif ending == ".parquet":
            return False
        else:
            content.decode("utf-8")
        return True
    except Exception:
        return False


def main() -> int:
    """Run the campaign; 1 if a case failed or fewer than a third got past the parser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--readers", default="", help="only readers whose names contain this")
    args = parser.parse_args()
    print(f"fuzz: {args.cases} cases, seed {args.seed}, at most {args.seconds:.0f} s", flush=True)
    report = campaign(args.cases, args.seed, args.seconds, args.readers)
    for failure in report.failures:
        print(f"FAILED {failure}")
    print(f"fuzz: {report}")
    too_few = 3 * report.counts["parsed"] < report.counts["cases"]
    return int(bool(report.failures) or too_few)


if __name__ == "__main__":
    sys.exit(main())
