"""Stands in for minillm/cli.py in a copied checkout: writes the files a stage declares, computes nothing."""

import os
import sys
import time
from pathlib import Path

BESIDE = {
    "testset": [".card.json"],
    "generate": [".meta.json"],
    "samples": [".meta.json"],
    "human-export": [".key.json"],
    "subsets": [".0_5.jsonl", ".6_10.jsonl", ".11_.jsonl", ".card.json"],
}
INSIDE = {
    "table": ["main.csv", "main.md", "main.tex"],
    "figure": ["main.png", "main.pdf"],
    "estimators": [
        *(f"tables/estimators.{kind}" for kind in ("csv", "md")),
        *(f"figures/estimators.{kind}" for kind in ("png", "pdf")),
    ],
}


def main() -> int:
    stage, *rest = sys.argv[1:]
    options = {name: value for name, value in zip(rest, rest[1:], strict=False) if name.startswith("--")}
    out = Path(options["--out"])
    if stage == "publish":
        kinds = ["csv", "md", "tex", "json"] if out.name == "tables" else ["png", "pdf", "json"]
        files = [out / f"{Path(options['--config']).stem}.{kind}" for kind in kinds]
    elif stage in INSIDE:
        files = [out / name for name in INSIDE[stage]]
    elif out.suffix.startswith((".json", ".md", ".html", ".csv")):
        files = [out, *(out.with_suffix(suffix) for suffix in BESIDE.get(stage, ()))]
    else:
        files = [Path(options[key]) / "made" for key in ("--out", "--init") if key in options]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{stage}\n")
    if os.environ.get("STUB_HANGS_IN") == stage:
        time.sleep(600)
    return 0
