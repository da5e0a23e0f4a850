"""Lengths of Dolly's training rows: prints the two lines of quantiles in shapes.py.

`python -m benchmarks.lengths FOLDER`: FOLDER has dolly/train.jsonl (docs/data.md) and GPT-2's byte-level BPE
in gpt2_bpe/.  Lengths are those of the pipeline: the published prompt template, without prompts of more than
256 tokens, one EOS after the response, responses cut at 256 tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from minillm.config.data import Dataset
from minillm.data.prompts import encode, render
from minillm.data.sources import read_rows

LIMIT = 256
QUANTILES = np.linspace(0, 1, 21)


def main(folder: Path) -> None:
    bpe = ByteLevelBPETokenizer.from_file(
        str(folder / "gpt2_bpe/encoder.json"), str(folder / "gpt2_bpe/vocab.bpe")
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    rows = read_rows(Dataset(source="folder", path=str(folder / "dolly/train.jsonl")), "dolly")
    pairs = [encode(tokenizer, render(row, "alpaca"), row.outputs[0], LIMIT)[:2] for row in rows]
    kept = np.array([(len(prompt), len(response)) for prompt, response in pairs if len(prompt) <= LIMIT])
    print(f"# {len(kept)} of {len(rows)} rows; means {kept.mean(0).round(1).tolist()}")
    for name, values in zip(("PROMPTS", "RESPONSES"), kept.T, strict=True):
        print(f"{name} = {tuple(int(v) for v in np.quantile(values, QUANTILES).round())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
