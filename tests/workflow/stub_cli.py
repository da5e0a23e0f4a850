"""Stands in for minillm/cli.py in a copied checkout: writes the files that a stage declares and computes nothing."""

import sys
from pathlib import Path

BESIDE = {"testset": ".card.json", "generate": ".meta.json", "samples": ".meta.json"}
INSIDE = {"table": ["main.csv", "main.md", "main.tex"], "figure": ["main.png", "main.pdf"]}


def main() -> int:
    stage, *rest = sys.argv[1:]
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    out = Path(options["--out"])
    if stage == "publish":
        kinds = ["csv", "md", "tex", "json"] if out.name == "tables" else ["png", "pdf", "json"]
        files = [out / f"{options['--name']}.{kind}" for kind in kinds]
    elif stage in INSIDE:
        files = [out / name for name in INSIDE[stage]]
    elif out.suffix.startswith((".json", ".md")):
        files = [out, *([out.with_suffix(BESIDE[stage])] if stage in BESIDE else [])]
    else:
        files = [Path(options[key]) / "made" for key in ("--out", "--init") if key in options]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{stage}\n")
    return 0
