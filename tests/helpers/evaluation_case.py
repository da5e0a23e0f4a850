"""Generations files for tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
)


def generations(
    path: Path, responses: list[str], references: list[str] | None = None, seeds: tuple[int, ...] = (10,)
) -> Path:
    """One row a response, the same for each seed, with its meta file."""
    references = references or ["red blue green"] * len(responses)
    lines = [
        {
            "id": i,
            "dataset": "t",
            "prompt": f"{ALPACA}### Instruction:\nQuestion {i}?\n\n### Response:\n",
            "references": [references[i]],
            "response": response,
            "seed": seed,
        }
        for seed in seeds
        for i, response in enumerate(responses)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    meta = {"model": "abc", "sampling": {}, "seeds": list(seeds), "dataset": "t", "rows": len(responses)}
    path.with_suffix(".meta.json").write_text(json.dumps(meta))
    return path
