"""What is recorded of rollouts that vLLM sampled: as if we had, and next to sums in float64."""

from __future__ import annotations

import dataclasses
import json
import sys

import backends_case
import numpy as np
import pytest
import torch
from data_case import message
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, WHOLE, OneProcess, Prompts, Tokenizer, pair
from onpolicy_case import settings as on_policy
from ranks import ranks
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.onpolicy import check_on_policy
from minillm.config.sampler import Sampler
from minillm.config.sections import Sampling
from minillm.runtime import shared_rows
from minillm.sampling.answerer import Request, seed_of
from minillm.sampling.sample import How, Mixture, sample
from minillm.sampling.vllm_backend import VARIABLE
from minillm.training.dev_set import Dev
from minillm.training.rollouts import Memory, collect_rollouts
from minillm.training.vllm_rollouts import VllmRollouts, scored

NAMES = ("student_logprobs", "teacher_logprobs", "mixture_logprobs", "reverse_kl", "entropy")


@torch.no_grad()
def in_float64(student, teacher, prompt, response, temperature):
    """(5, length), token by token and row by row."""
    logs = []
    for model in (student, teacher):
        tokens = torch.tensor(np.concatenate([prompt, response]))[None].long()
        logits = model(tokens).logits[0, len(prompt) - 1 : -1, :VOCABULARY] / temperature
        logs.append(logits.log_softmax(-1))
    q, p = logs
    at = torch.tensor(response).long()[:, None]
    kl = [sum(float(q[t, v].exp() * (q[t, v] - p[t, v])) for v in range(VOCABULARY)) for t in range(len(at))]
    own = q.gather(1, at)[:, 0]
    rest = [own, p.gather(1, at)[:, 0], own, torch.tensor(kl), -(q.exp() * q).sum(-1)]
    return torch.stack([values.double() for values in rest])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("batch", "budget"), [(8, 0), (3, 0), (8, 40)])
def test_records_are_those_of_sampling_and_of_float64(temperature, batch, budget):
    student, teacher = pair()
    sampling = Sampling(temperature=temperature, max_tokens=9)
    how = How(sampling, 3, 1, [EOS], 0, VOCABULARY, True, batch, budget)
    mixture = Mixture(teacher, 0.0)
    drawn = sample(
        student, PROMPTS, range(COUNT), sampling, seed=3, step=1, ends=[EOS], pad=0, vocabulary=VOCABULARY,
        mixture=mixture, record=True,
    )  # fmt: skip
    examples = [(p, r.tokens) for p, r in zip(PROMPTS, drawn, strict=True)]
    assert len({len(response) for _, response in examples}) > 2
    responses = [response.tokens for response in drawn]
    records = scored(student, mixture, PROMPTS, responses, how)
    for record, response, (prompt, tokens) in zip(records, drawn, examples, strict=True):
        exact = in_float64(student, teacher, prompt, tokens, temperature)
        for name, values in zip(NAMES, exact, strict=True):
            ours = torch.from_numpy(getattr(record, name))
            assert ours.dtype == torch.float32
            assert_close(ours, torch.from_numpy(getattr(response.record, name)), atol=1e-5, rtol=1e-5)
            assert_close(ours.double(), values, atol=1e-5, rtol=1e-5)
        assert_close(record.teacher_hidden, response.record.teacher_hidden, atol=1e-5, rtol=1e-5)
    alone = scored(student, None, PROMPTS, responses, how)
    for record, other in zip(alone, records, strict=True):
        assert_close(record.teacher_logprobs, record.student_logprobs, atol=0, rtol=0)
        assert_close(record.entropy, other.entropy, atol=1e-5, rtol=1e-5)
        assert np.abs(record.reverse_kl).max() == 0 and record.teacher_hidden is None


def test_a_teacher_with_a_prompt_and_an_end_of_its_own():
    """As sampling records it."""
    student, teacher = pair()
    mixture = Mixture(teacher, 0.0, None, [prompt[::-1].copy() for prompt in PROMPTS], 3)
    how = How(Sampling(max_tokens=9), 3, 1, [EOS], 0, VOCABULARY, True)
    drawn = sample(
        student, PROMPTS, range(COUNT), how.sampling, seed=3, step=1, ends=[EOS], pad=0,
        vocabulary=VOCABULARY, mixture=mixture, record=True,
    )  # fmt: skip
    assert any(response.finished for response in drawn)
    records = scored(student, mixture, PROMPTS, [response.tokens for response in drawn], how)
    for record, response in zip(records, drawn, strict=True):
        for name in NAMES:
            ours = torch.from_numpy(getattr(record, name))
            assert_close(ours, torch.from_numpy(getattr(response.record, name)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_each_collection_is_drawn_with_the_weights_of_its_time(size, tmp_path, monkeypatch):
    """By one process of vLLM a rank, here stand-ins; the same on every rank."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -S {backends_case.FAKE}\n")
    program.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(program))
    monkeypatch.setenv("FAKE_NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("FAKE_OTHERS", str(VOCABULARY - 1))
    monkeypatch.setattr(shared_rows, "FOLDER", tmp_path)
    chosen = on_policy("default", alpha=0.0, backend="vllm", max_tokens=3)
    pairs = [pair() for _ in range(size)]
    dev = Dev([], [], Tokenizer(), Sampling(), VOCABULARY, 8, 0)

    def rank(world):
        student, teacher = pairs[world.rank]
        engine = OneProcess(student, WHOLE, world)
        engine.model, engine.launch, engine.folder = student, Launch(eval_batch=3), tmp_path / "run"
        vllm = VllmRollouts(engine, chosen, "fp32")
        made = []
        for collection in range(2):
            made.append(
                collect_rollouts(engine, teacher, Prompts(), dev, chosen, Memory(1.0), collection, 3, vllm)
            )
            world.barrier()
            with torch.no_grad():
                student.get_input_embeddings().weight.mul_(1.5)
        return made

    every = ranks(size, rank)
    assert not (tmp_path / "run/vllm").exists()
    for collection, first in enumerate(every[0]):
        for other in every[1:]:
            for name in ("mask", "student_logprobs", "teacher_hidden"):
                assert_close(getattr(other[collection], name), getattr(first, name), atol=0, rtol=0)
        student, teacher = pair()
        with torch.no_grad():
            student.get_input_embeddings().weight.mul_(1.5**collection)
        for i, (id_, prompt, response) in enumerate(
            zip(first.ids, first.prompts, first.responses, strict=True)
        ):
            count = 1 + seed_of(Request((), id_, 3, prompt, collection)) % 3
            said = [1 + (int(prompt[-1]) + t) % (VOCABULARY - 1) for t in range(count)] + [EOS]
            assert response.tolist() == said[:3]
            exact = in_float64(student, teacher, prompt, response, 1.0)
            for name, row in (("student_logprobs", 0), ("teacher_logprobs", 1), ("reverse_kl", 3)):
                ours = getattr(first, name)[i, : len(response)].double()
                assert_close(ours, exact[row], atol=1e-5, rtol=1e-5)
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    read = [note["weights"] for note in notes if "model" in note]
    assert len(set(read[:size])) == len(set(read[size:])) == 1 and read[0] != read[-1]
    assert len(read) == 2 * size


def test_top_p_is_vllms_too_and_records_are_of_whole_distributions(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, sys.executable)
    student, teacher = pair()
    engine = OneProcess(student, WHOLE)
    engine.folder = tmp_path
    changes = {"alpha": 0.0, "backend": "vllm", "objective": "reverse_kl", "temperature": 0.7}
    chosen = on_policy("default", **changes, sampler=Sampler(top_p=0.6))
    found = VllmRollouts(engine, chosen, "fp32").sampling
    assert (found.top_p, found.temperature, found.max_tokens) == (0.6, 0.7, chosen.max_tokens)
    assert VllmRollouts(engine, on_policy("default", **changes), "fp32").sampling.top_p == 1.0
    how = How(found, 3, 1, [EOS], 0, VOCABULARY, True)
    responses = [Prompts().response(i) for i in range(COUNT)]
    for record, prompt, tokens in zip(
        scored(student, Mixture(teacher, 0.0), PROMPTS, responses, how), PROMPTS, responses, strict=True
    ):
        exact = in_float64(student, teacher, prompt, tokens, 0.7)
        assert_close(torch.from_numpy(record.student_logprobs).double(), exact[0], atol=1e-5, rtol=1e-5)


def test_a_teacher_in_the_mixture_is_refused():
    chosen = on_policy("default", alpha=0.0, backend="vllm")
    check_on_policy(chosen, "config", "stages.minillm")
    mixed = dataclasses.replace(chosen, alpha=0.2)
    assert message(lambda: check_on_policy(mixed, "config", "stages.minillm")) == (
        "config: stages.minillm.backend: vLLM samples from the student only; set alpha: 0.0, or backend: "
        "transformers"
    )
