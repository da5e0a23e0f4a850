"""examples/own_trainer.py: MiniLLM in a plain loop, run as its readers run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from minillm.data.tokenizers import train_tokenizer
from minillm.models.loading import load_model, load_tokenizer, save_model

ROOT = Path(__file__).parents[2]


def trained(*arguments: object) -> list[float]:
    """The reverse KL that the example prints, before and after each collection."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_trainer.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [float(value) for value in re.findall(r"reverse KL ([0-9.]+)", done.stdout)]


def test_the_reverse_kl_to_the_teacher_falls() -> None:
    values = trained()
    assert len(values) == 9
    assert values[-1] < 0.5 * values[0]
    assert sum(values[-3:]) < sum(values[1:4])


def test_models_and_prompts_of_ones_own(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    text = ["the cat sat on the mat", "a dog ran to the red house", "we saw the cat and the dog"]
    tokenizer = train_tokenizer(text, 280)
    shape = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer), initializer_range=0.3)
    for name in ("teacher", "student"):
        save_model(GPT2LMHeadModel(shape), tokenizer, tmp_path / name)
    (tmp_path / "prompts.txt").write_text("\n".join(text * 3) + "\n")
    paths = [value for name in ("teacher", "student", "out") for value in (f"--{name}", tmp_path / name)]
    values = trained(*paths, "--prompts", tmp_path / "prompts.txt", "--collections", 1, "--max-tokens", 8)
    assert len(values) == 2 and values[1] < values[0]
    assert load_tokenizer(tmp_path / "out").get_vocab() == tokenizer.get_vocab()
    before, after = (load_model(tmp_path / name, "fp32").state_dict() for name in ("student", "out"))
    assert any((before[name] != after[name]).any() for name in before)
