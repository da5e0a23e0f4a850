"""vLLM itself (`make test-vllm`): greedy answers are ours token by token, sampled ones follow the exact law.

In float32: in half precision two tokens that are nearly as likely may change places.  Every test starts vLLM
once or twice, which takes longer than all that it answers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import backends_case as case
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel

from minillm.config.launch import Launch
from minillm.config.sampling import Sampling
from minillm.data.tokenizers import vocabulary_size
from minillm.models.loading import load_model, load_tokenizer
from minillm.sampling.answerer import Answer, Request
from minillm.sampling.generate import answer_all
from minillm.sampling.vllm_backend import VARIABLE, Vllm

pytestmark = pytest.mark.skipif(
    not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no environment with vLLM: make test-vllm"
)
GREEDY = Sampling(top_k=1, max_tokens=16, backend="vllm")
PLAIN = Sampling(max_tokens=2, backend="vllm")
FILTERED = Sampling(temperature=0.7, top_k=12, top_p=0.8, max_tokens=2, backend="vllm")
# Responses of a test of a law, and the least probability with which a right one fails.
COUNT, LEVEL = 1500, 1e-4


def filtered(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The law that is drawn from, in float64: temperature, then the likeliest k, then the likeliest p."""
    scores = logits.astype(np.float64) / sampling.temperature
    law = np.exp(scores - scores.max())
    order = np.argsort(-law)
    if sampling.top_k:
        law[order[sampling.top_k :]] = 0
    law /= law.sum()
    before = np.cumsum(law[order]) - law[order]
    law[order[before >= sampling.top_p]] = 0
    return law / law.sum()


@torch.no_grad()
def law_of_two(
    model: PreTrainedModel, prompt: Sequence[int], eos: int, vocabulary: int, sampling: Sampling
) -> Any:
    """(law of the first token (vocabulary,), {(first, second): probability}), second -1 after the EOS."""
    first = filtered(model(torch.tensor([prompt])).logits[0, -1, :vocabulary].numpy(), sampling)
    tokens = torch.tensor([[*prompt, token] for token in range(vocabulary)])
    logits = model(tokens).logits[:, -1, :vocabulary].numpy()
    pairs = {}
    for token in np.flatnonzero(first):
        if token == eos:
            pairs[token, -1] = first[token]
            continue
        second = filtered(logits[token], sampling)
        pairs |= {(token, other): first[token] * second[other] for other in np.flatnonzero(second)}
    return first, pairs


def p_value(found: Counter[Any], law: dict[Any, float]) -> float:
    """Of a chi-square test; what is expected less than five times is one bin."""
    assert set(found) <= set(law), "drawn although its probability is 0"
    total = sum(found.values())
    bins = [key for key, p in law.items() if p * total >= 5]
    seen, expected = [found[key] for key in bins], [law[key] * total for key in bins]
    rest = total - sum(expected)
    if rest > 1e-6 * total:
        seen, expected = [*seen, total - sum(seen)], [*expected, rest]
    assert len(bins) > 2
    return float(chisquare(seen, expected).pvalue)


def check_laws(vllm: Vllm, folder: Path) -> None:
    """The laws of one and of two tokens, without and with filters."""
    model, words = load_model(folder, "fp32"), load_tokenizer(folder)
    eos, entries = words.eos_token_id, vocabulary_size(words)
    prompt = np.asarray(words.encode("the cat"), dtype=np.int32)
    for sampling in (PLAIN, FILTERED):
        asked = [Request((row,), row, 10, prompt) for row in range(COUNT)]
        answers = [tuple(a.tokens) for _, a in vllm.answers(asked, sampling, eos, entries)]
        first, pairs = law_of_two(model, prompt.tolist(), eos, entries, sampling)
        singles = {token: first[token] for token in np.flatnonzero(first)}
        assert p_value(Counter(answer[0] for answer in answers), singles) > LEVEL
        found = Counter((answer[0], -1 if answer[0] == eos else answer[1]) for answer in answers)
        assert p_value(found, pairs) > LEVEL


@pytest.mark.parametrize(
    ("family", "padding"), [("gpt2", 0), ("llama", 7), ("qwen2", 0), ("opt", 6), ("gpt_neox", 3)]
)
def test_a_family(family: str, padding: int, tmp_path: Path) -> None:
    """Greedy answers, and laws of sampled ones."""
    folder = case.model_folder(tmp_path / "model", family, padding, seed=1)
    words = load_tokenizer(folder)
    asked, entries = case.requests(words), vocabulary_size(words)
    vllm = Vllm(folder, "fp32", case.WORLD, 0.5, tmp_path / "scratch")
    try:
        found = {q.key: a for q, a in vllm.answers(asked, GREEDY, words.eos_token_id, entries)}
        check_same(found, case.ours(folder, asked, GREEDY, tmp_path / "ours"))
        assert len({a.finished for a in found.values()}) == 2
        check_laws(vllm, folder)
    finally:
        vllm.close()


def check_same(found: dict[Any, Answer], ours: list[dict[str, Any]]) -> None:
    for key, answer in zip(sorted(found), ours, strict=True):
        assert found[key].tokens.tolist() == answer["response_tokens"], key
        assert found[key].finished == answer["finished"], key


class Interrupted(Vllm):
    """Ends in the middle of its answers."""

    def answers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Request, Answer]]:
        for i, pair in enumerate(super().answers(*args, **kwargs)):
            if i == 4:
                raise KeyboardInterrupt
            yield pair


def test_an_interrupted_job_resumes_to_the_same_answers(tmp_path: Path) -> None:
    folder = case.model_folder(tmp_path / "model", "llama", seed=1)
    words = load_tokenizer(folder)
    asked, sampling = case.requests(words), Sampling(max_tokens=12, backend="vllm")

    def run(kind: type[Vllm], journal: str) -> Any:
        vllm = kind(folder, "fp32", case.WORLD, 0.5, tmp_path / "scratch")
        return answer_all(vllm, words, asked, sampling, Launch(), case.WORLD, tmp_path / journal)

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted, "a")
    assert len((tmp_path / "a.0of1").read_text().splitlines()) == 4
    resumed, whole = run(Vllm, "a"), run(Vllm, "b")
    assert resumed == whole and len({tuple(a["response_tokens"]) for a in whole}) > 5
