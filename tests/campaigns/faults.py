"""A seeded campaign of faults over a tiny configuration: `make faults`.

After each fault the same command is run again, and every file must be that of an undisturbed run.  Results
go to FOLDER/faults.jsonl as they come, and a second start resumes from there.

    python tests/campaigns/faults.py [--faults N] [--seed N] [--only WORD] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from faults_case import EXACT, FAILED, SKIPPED, STATED, Case, Failed
from faults_checkout import REPO, Checkout, contents, copied
from faults_kinds import KINDS, a_round, stage_of, unmount
from faults_stages import STAGES
from warm_python import warm_python

CONFIGS = ("tests/config/tiny.yaml", "tests/campaigns/faults.yaml")
TWO = (*CONFIGS, "tests/campaigns/two.yaml")
# A job that starts at once takes about this long if no benchmark file says it.
SHORT = 1.0
HOW = (EXACT, STATED, FAILED, SKIPPED)


@dataclasses.dataclass
class Base:
    """A finished, undisturbed run; `start` is how long Snakemake takes to see that nothing is to be done."""

    checkout: Checkout
    expected: dict[str, str]
    start: float

    @classmethod
    def of(cls, checkout: Checkout, *targets: str) -> Base:
        """A base from a checkout in which `targets` (or the whole run) are finished, or RuntimeError."""
        begun = time.monotonic()
        ended = checkout.snakemake(*targets)
        if ended.status or "Nothing to be done" not in ended.output:
            raise RuntimeError(f"the undisturbed run is not finished:\n{ended.output[-3000:]}")
        return cls(checkout, contents(checkout.run), time.monotonic() - begun)

    def seconds(self, log: str) -> float:
        """How long the job with this log took."""
        path = self.checkout.run / log.replace("logs/", "benchmarks/").replace(".log", ".tsv")
        if not path.is_file():
            return SHORT
        return float(path.read_text(encoding="utf-8").splitlines()[1].split("\t")[0])


def undisturbed(folder: Path, python: str) -> Base:
    """A finished run of the tiny configuration, made in `folder` if it is not there, or RuntimeError."""
    made = folder / "one"
    if not (folder / "one-finished").exists():
        print("an undisturbed run first (a minute or two, more on a busy machine) ...", flush=True)
        _must(Checkout(copied(REPO, made), CONFIGS, python))
        (folder / "one-finished").touch()
    return Base.of(Checkout(made, CONFIGS, python))


def on_two_processes(one: Base, folder: Path) -> Base:
    """The same after the stages for two processes ran so: their sums are in another order."""
    made = folder / "two"
    if not (folder / "two-finished").exists():
        copied(one.checkout.folder, made)
    checkout = Checkout(made, TWO, one.checkout.python)
    cases = [Case(checkout, stage, {}, SHORT) for stage in STAGES.values() if stage.processes == 2]
    if not (folder / "two-finished").exists():
        for case in cases:
            case.clear()
            _must(checkout, *case.targets)
        (folder / "two-finished").touch()
    return Base.of(checkout, *(target for case in cases for target in case.targets))


def _must(checkout: Checkout, *options: str) -> None:
    ended = checkout.snakemake(*options, limit=1800)
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed run fails:\n{ended.output[-3000:]}")


def attempt(number: int, kind: str, name: str, seed: int, base: Base, folder: Path) -> dict[str, object]:
    """One fault in a copy of the finished run; its record."""
    begun, rng = time.monotonic(), random.Random(f"{seed}/{number}")
    stage = stage_of(kind, name)
    unmount(folder)
    checkout = Checkout(copied(base.checkout.folder, folder), base.checkout.configs, base.checkout.python)
    case = Case(checkout, stage, base.expected, base.seconds(stage.log))
    record: dict[str, object] = {"number": number, "seed": seed, "kind": kind, "stage": name}
    arguments = [name] if kind == "damaged result" else []
    try:
        outcome = KINDS[kind](case, rng, *arguments)
        record |= {"how": outcome.how, "what": outcome.what, "seen": outcome.seen}
    except Failed as failed:
        record |= {"how": FAILED, "what": "", "seen": str(failed)}
        record["printed"] = [text[-6000:] for text in case.printed]
    finally:
        checkout.end_all()
    return record | {"took": round(time.monotonic() - begun, 1)}


def plan(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` faults: rounds of `a_round`, each in its own order."""
    faults: list[tuple[str, str]] = []
    while len(faults) < count:
        faults += a_round(random.Random(f"{seed}/round {len(faults)}"))
    return faults[:count]


def table(records: list[dict[str, object]]) -> str:
    """Tried, exact, with a stated loss, failed: by kind and by stage, and each failure in a line."""
    lines = []
    for title, key in (("kind", "kind"), ("stage, or damaged file", "stage")):
        width = max([len(title), *(len(str(record[key])) for record in records)]) + 1
        lines += ["", f"{title:<{width}}{'tried':>7}{'exact':>7}{'stated':>8}{'failed':>8}{'skipped':>9}"]
        counts = Counter((record[key], record["how"]) for record in records)
        for name in [*sorted({str(record[key]) for record in records}), "all"]:
            row = [sum(n for (k, h), n in counts.items() if name in (k, "all") and h == how) for how in HOW]
            tried = sum(row) - row[-1]
            lines.append(f"{name:<{width}}{tried:>7}{row[0]:>7}{row[1]:>8}{row[2]:>8}{row[3]:>9}")
    lines += ["", "stated: a line says what is damaged or was lost and what to do, and then the run is exact"]
    for record in records:
        if record["how"] in (FAILED, SKIPPED):
            lines.append(shown(record))
    return "\n".join(lines)


def shown(record: dict[str, object]) -> str:
    """One line about a fault."""
    what = "; ".join(str(record[key]) for key in ("what", "seen") if record[key])
    return f"{record['number']:>4} {record['how']:<8} {record['kind']}, {record['stage']}: {what}"


def code() -> str:
    """Hash of all that decides the results, so that a changed checkout starts anew."""
    digest = hashlib.sha256()
    for pattern in ("minillm/**/*", "rules/*", "workflow/**/*", "config/**/*", *CONFIGS, TWO[-1]):
        for path in sorted(REPO.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(REPO)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=len(a_round(random.Random(0))))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose kind or stage contains this")
    parser.add_argument("--folder", type=Path, default=REPO / ".faults")
    return parser.parse_args()


def main() -> int:
    """Run what is left of the campaign; 1 if any fault failed."""
    args = options()
    folder = args.folder.resolve() / code()
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "faults.jsonl"
    print("real signals, mounts and damage; times of files stand for a clock set back (os.utime)")
    with warm_python() as python:
        bases = {1: undisturbed(folder, python)}
        done = (
            [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
            if journal.exists()
            else []
        )
        faults = [
            (number, kind, name)
            for number, (kind, name) in enumerate(plan(args.faults, args.seed))
            if args.only in kind or args.only in name
        ]
        records = [record for record in done if record["seed"] == args.seed]
        seen = {(record["number"], record["kind"], record["stage"]) for record in records}
        left = [fault for fault in faults if fault not in seen]
        each = sum(
            3 * bases[1].start + 1.5 * bases[1].seconds(stage_of(kind, name).log) for _, kind, name in left
        )
        done_already = len(faults) - len(left)
        print(f"{len(faults)} faults, {done_already} done; the others take about {each / 60:.0f} minutes")
        print(f"results: {journal}", flush=True)
        for number, kind, name in left:
            processes = stage_of(kind, name).processes
            if processes not in bases:
                bases[processes] = on_two_processes(bases[1], folder)
            record = attempt(number, kind, name, args.seed, bases[processes], folder / "case")
            with open(journal, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            records.append(record)
            print(f"{shown(record)} ({record['took']} s)", flush=True)
    records = [record for record in records if (record["number"], record["kind"], record["stage"]) in faults]
    print(table(records))
    return int(any(record["how"] == FAILED for record in records))


if __name__ == "__main__":
    sys.exit(main())
