"""Two undisturbed runs of a configuration, in two folders, hold the same bytes: `make determinism`.

    python tests/campaigns/determinism.py [--cores N] [--folder FOLDER] CONFIG [CONFIG ...]

Compared apart from times, memory and hosts (faults_checkout.py); logs and benchmarks are not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from faults_checkout import REPO, Checkout, contents, copied

KINDS = {
    "weights": lambda name: name.endswith(".safetensors"),
    "generations": lambda name: name.startswith(("generations/", "samples/")) or "/pseudo/" in name,
    "metrics": lambda name: name.startswith("metrics/") or name.endswith("metrics.jsonl"),
    "csv": lambda name: name.endswith(".csv"),
    "the rest": lambda name: True,
}


def one_run(configs: list[str], cores: str, folder: Path) -> dict[str, str]:
    """A run in a new copy of the checkout; its contents.  Raises RuntimeError if it fails."""
    begun = time.monotonic()
    checkout = Checkout(copied(REPO, folder), configs, cores=cores)
    ended = checkout.snakemake(limit=86400)
    if ended.status:
        raise RuntimeError(f"the run in {folder} ends with {ended.status}:\n{ended.output[-3000:]}")
    print(f"{checkout.run}: {time.monotonic() - begun:.0f} s", flush=True)
    return contents(checkout.run)


def compared(first: dict[str, str], second: dict[str, str]) -> tuple[list[tuple[str, int, int]], list[str]]:
    """((kind, files, files that are equal) ...), names of the files that differ or are in one run only."""
    counts, unequal, left = [], [], sorted({*first, *second})
    for kind, belongs in KINDS.items():
        names = [name for name in left if belongs(name)]
        left = [name for name in left if name not in names]
        wrong = [name for name in names if first.get(name) != second.get(name)]
        counts.append((kind, len(names), len(names) - len(wrong)))
        unequal += wrong
    return counts, unequal


def main() -> int:
    """Run twice, compare, print; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--folder", type=Path, default=REPO / ".faults" / "determinism")
    args = parser.parse_args()
    print(f"two runs of {' '.join(args.configs)}, one after the other", flush=True)
    runs = [one_run(args.configs, args.cores, args.folder.resolve() / name) for name in ("first", "second")]
    counts, unequal = compared(*runs)
    print(f"{'':<14}{'files':>7}{'equal':>7}")
    for kind, number, equal in counts:
        print(f"{kind:<14}{number:>7}{equal:>7}")
    for name in unequal:
        print(f"differs: {name}")
    if unequal:
        print(f"both runs are left below {args.folder}")
        return 1
    shutil.rmtree(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
