"""How vLLM is started, asked and recorded, with a stand-in for its process; tests/vllm has the real one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import backends_case as case
import numpy as np
import pytest
import torch
from data_case import message
from transformers import PreTrainedTokenizerBase
from transformers.distributed import mixin

from minillm.config.launch import Launch
from minillm.config.sampling import Sampling
from minillm.config.stage_settings import GenerateSettings
from minillm.data.tokenizers import vocabulary_size
from minillm.evaluation.generations import read_generations
from minillm.files import settings_hash, without_unset
from minillm.models.loading import load_model
from minillm.models.weights import read_model
from minillm.runtime.processes import World
from minillm.sampling import vllm_backend
from minillm.sampling.answerer import Request, seed_of
from minillm.sampling.generate import answer_all, run_stage
from minillm.sampling.vllm_backend import VARIABLE, Vllm, python

SAMPLING = Sampling(max_tokens=4, backend="vllm")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    return case.tokenizer()


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in takes vLLM's place; what it is asked is in this file."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -S {case.FAKE}\n")
    program.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(program))
    monkeypatch.setenv("FAKE_NOTES", str(tmp_path / "notes"))
    return tmp_path / "notes"


def noted(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def vllm(folder: Path, scratch: Path) -> Vllm:
    return Vllm(folder, "fp32", case.WORLD, 0.9, scratch)


def expected(request: Request, eos: int) -> list[int]:
    """What the stand-in says."""
    count = 1 + seed_of(request) % 3
    return [1 + (int(request.prompt[-1]) + i) % 200 for i in range(count)] + [eos]


def test_the_default_backend_is_in_no_settings_and_vllm_is() -> None:
    old = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "no_repeat_ngram": 0, "max_tokens": 256}
    settings = {**old, "backend": "transformers"}
    assert without_unset({"sampling": settings}) == {"sampling": old}
    assert settings_hash(settings) == settings_hash(old) != settings_hash({**old, "backend": "vllm"})


def test_seeds_depend_on_seed_step_and_row_and_nothing_else() -> None:
    def seed(*values: int, prompt: int = 1) -> int:
        row, seed, step = values
        return seed_of(Request(("any", prompt), row, seed, np.array([prompt]), step))

    every = {seed(r, s, t) for r in range(20) for s in (10, 20, 30) for t in range(5)}
    assert len(every) == 20 * 3 * 5 and all(0 <= value < 2**63 for value in every)
    assert seed(3, 10, 2) == seed(3, 10, 2, prompt=9)


def test_the_stage_writes_what_vllm_says_and_who_said_it(
    notes: Path, tmp_path: Path, words: PreTrainedTokenizerBase
) -> None:
    folder = case.model_folder(tmp_path / "model", "llama")
    test = case.test_file(tmp_path / "test.jsonl", words)
    settings = GenerateSettings("generate", (10, 20), "fp32", SAMPLING)
    run_stage(settings, Launch(), test=test, model=folder, out=tmp_path / "out.jsonl")
    meta, rows, ids = read_generations(tmp_path / "out.jsonl")
    assert meta["answered_by"] == {"program": "vllm", "version": "0.0"}
    assert meta["sampling"]["backend"] == "vllm" and ids == [0, 1, 2, 3, 4]
    for request in case.requests(words):
        row = rows[request.seed][request.row]
        said = expected(request, words.eos_token_id)
        assert row["response_tokens"] == said[:4] and row["finished"] is (len(said) <= 4)
    start, order = noted(notes)
    longest = max(len(words.encode(prompt)) for prompt in case.PROMPTS)
    assert (start["model"], start["dtype"]) == (str(folder), "float32") and start["length"] == longest + 4
    asked = {tuple(tokens) for _, tokens, _ in order["answer"]}
    assert asked == {tuple(words.encode(prompt)) for prompt in case.PROMPTS}
    assert len({seed for *_, seed in order["answer"]}) == 10
    assert {order[key] for key in ("temperature", "top_p")} == {1.0} and order["eos"] == words.eos_token_id
    assert not list(tmp_path.glob(".out*"))


def test_an_interrupted_job_asks_only_for_what_is_left(
    notes: Path, tmp_path: Path, words: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = case.model_folder(tmp_path / "model", "gpt2"), case.requests(words)

    def run() -> Any:
        answerer = vllm(folder, tmp_path / "scratch")
        return answer_all(answerer, words, asked, SAMPLING, Launch(), case.WORLD, tmp_path / "journal")

    monkeypatch.setenv("FAKE_DIES", "4")
    assert "vLLM ended with status 3" in message(run)
    monkeypatch.delenv("FAKE_DIES")
    answers = run()
    assert [a["response_tokens"] for a in answers] == [
        expected(q, words.eos_token_id)[:4] for q in sorted(asked, key=lambda q: q.key)
    ]
    orders = [note for note in noted(notes) if "answer" in note]
    assert [len(order["answer"]) for order in orders] == [10, 6]


@pytest.mark.parametrize("rank", [0, 1])
def test_padding_of_the_vocabulary_is_cut_off_before_vllm_sees_the_weights(
    rank: int, notes: Path, tmp_path: Path, words: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every rank for itself, although transformers saves only on the first."""
    folder, entries = case.model_folder(tmp_path / "model", "opt", padding=5), vocabulary_size(words)
    scratch = tmp_path / "scratch"
    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: rank)
    answerer = vllm(folder, scratch)
    list(answerer.answers(case.requests(words)[:1], SAMPLING, words.eos_token_id, entries))
    assert noted(notes)[0]["model"] == str(scratch)
    whole, cut = load_model(folder, "fp32"), read_model(scratch, torch.float32, scratch)
    tokens = torch.tensor([words.encode("the cat sat")])
    assert whole(tokens).logits.shape[-1] == entries + 5 and cut.config.vocab_size == entries
    torch.testing.assert_close(cut(tokens).logits, whole(tokens).logits[..., :entries])
    answerer.close()
    assert not scratch.exists()


def test_what_cannot_be_done_is_one_line(
    notes: Path, tmp_path: Path, words: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, prompts = case.model_folder(tmp_path / "model", "gpt2"), [np.arange(100)]
    answerer = vllm(folder, tmp_path / "scratch")
    assert "vLLM has no n-gram block" in message(
        lambda: answerer.check(prompts, Sampling(backend="vllm", no_repeat_ngram=6))
    )
    assert "vLLM draws with 0.01" in message(
        lambda: answerer.check(prompts, Sampling(backend="vllm", temperature=0.001))
    )
    assert "has 128 positions, but a prompt has 100 tokens and max_tokens is 29" in message(
        lambda: answerer.check(prompts, Sampling(backend="vllm", max_tokens=29))
    )
    answerer.check(prompts, Sampling(backend="vllm", max_tokens=28))
    monkeypatch.setenv("FAKE_SAYS", "ValueError: no such architecture")
    assert message(
        lambda: list(answerer.answers(case.requests(words), SAMPLING, words.eos_token_id, 300))
    ) == (f"{folder}: vLLM: ValueError: no such architecture")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert "is no program" in message(python)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(vllm_backend.importlib.util, "find_spec", lambda name: None)
    assert "pip install vllm==" in message(python)


def test_each_process_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_backend._visible(World(1, 2, torch.device("cuda", 1)).device) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7,2")
    assert vllm_backend._visible(torch.device("cuda", 1)) == "GPU-7"
