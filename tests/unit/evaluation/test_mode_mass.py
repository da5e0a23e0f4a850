"""Stage mode_mass with a real model: against whole passes in float64, and against samples of that model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minillm.config.launch import Launch
from minillm.config.measurements.validity import ModeMassSettings
from minillm.config.sections import Sampling
from minillm.evaluation import mode_mass
from minillm.files import hashes, model_content, write_json
from minillm.models.loading import load_model, load_tokenizer
from minillm.sampling.sample import sample

WORDS = ["<end>", *"abcdefghijkl"]
# Prompts of unequal lengths; of the second, a right answer is listed twice.
TESTS = [("a b c", ["b a", "c", "b"]), ("d", ["e f", "e  f", "g"]), ("l k j i h", ["h"])]


@pytest.fixture(params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose tokenizer makes one token of a word."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=WORDS[0], pad_token=WORDS[0], unk_token="a"
    ).save_pretrained(tmp_path / "model")
    make(request.param, 3).save_pretrained(tmp_path / "model")
    write_json(tmp_path / "model" / "provenance.json", {"content": model_content(hashes(tmp_path / "model"))})
    return tmp_path / "model"


def mass(folder: Path, launch: Launch) -> dict[str, Any]:
    test, out = folder.parent / "test.jsonl", folder.parent / "mass.json"
    rows = [
        {
            "id": i, "dataset": "open", "prompt": prompt, "references": references,
            "prompt_tokens": [WORDS.index(word) for word in prompt.split()],
        }
        for i, (prompt, references) in enumerate(TESTS)
    ]  # fmt: skip
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mode_mass.run_stage(ModeMassSettings("mode_mass", 3, "fp32"), launch, test=test, model=folder, out=out)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def probability(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> float:
    """Word by word, each from a pass over all words before it, in float64."""
    ids, product = tokenizer.encode(prompt), 1.0
    for token in [*tokenizer.encode(text), 0]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1, : len(WORDS)].double()
        product *= logits.softmax(-1)[token].item()
        ids = [*ids, token]
    return product


@pytest.mark.parametrize("launch", [Launch(micro_batch=1), Launch(micro_batch=8)], ids=("apart", "together"))
def test_the_mass_is_the_product_of_each_word_s_probability(folder: Path, launch: Launch) -> None:
    model, tokenizer = load_model(folder, "fp32"), load_tokenizer(folder)
    expected = [
        sum(probability(model, tokenizer, prompt, text) for text in {" ".join(r.split()) for r in references})
        for prompt, references in TESTS
    ]
    result = mass(folder, launch)
    assert [np.exp(values).sum() for values in result["logprobs"]] == pytest.approx(expected, rel=1e-4)
    assert result["mean"] == pytest.approx(100 * np.mean(expected), rel=1e-4)
    assert result["void"] == pytest.approx(100 - result["mean"])


def test_so_many_samples_are_right(folder: Path) -> None:
    model, n = load_model(folder, "fp32"), 4000
    result = mass(folder, Launch(micro_batch=8))
    for (prompt, references), values in zip(TESTS, result["logprobs"], strict=True):
        ids = np.array([WORDS.index(word) for word in prompt.split()])
        right = {tuple(WORDS.index(word) for word in text.split()) for text in references}
        answers = sample(
            model, [ids] * n, range(n), Sampling(max_tokens=4), seed=1, step=0, ends=[0], pad=0,
            vocabulary=len(WORDS), batch=n,
        )  # fmt: skip
        share = np.mean([a.finished and tuple(a.tokens[:-1].tolist()) in right for a in answers])
        expected = np.exp(values).sum()
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 1 / n
