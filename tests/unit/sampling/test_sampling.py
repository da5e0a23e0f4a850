"""Sampling: what is recorded is what re-scoring gives, and frequencies follow Eq. 4.

Rows do not depend on their company.
"""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny_models import FAMILIES, make
from transformers import NoRepeatNGramLogitsProcessor

from minillm.config.sections import Sampling
from minillm.data.batching import collate
from minillm.errors import UserError
from minillm.models.head import response_hidden, response_logits, response_tokens, token_logprobs
from minillm.sampling.draw import draw
from minillm.sampling.logit_filters import NgramBlock
from minillm.sampling.sample import Mixture, sample, uniforms

VOCABULARY, EOS = 11, 0
PROMPTS = [np.array(ids, dtype=np.int32) for ids in ([3, 4, 5, 6], [7], [1, 2], [9, 8, 7, 6, 5], [0, 4])]
ROWS = [10, 11, 12, 13, 14]


def run(model, prompts=PROMPTS, rows=ROWS, **arguments):
    defaults = {"seed": 1, "step": 2, "ends": [EOS], "pad": 0, "vocabulary": VOCABULARY}
    return sample(model, prompts, rows, Sampling(max_tokens=12), **(defaults | arguments))


@pytest.mark.parametrize("kind", FAMILIES)
def test_rescoring_gives_the_recorded_values(kind):
    student, teacher = make(kind, 1), make(kind, 2)
    responses = run(student, mixture=Mixture(teacher, 0.3), record=True)
    batch = collate([(p, r.tokens) for p, r in zip(PROMPTS, responses, strict=True)], 0)
    with torch.no_grad():
        q, p = (
            token_logprobs(response_logits(m, batch, VOCABULARY), response_tokens(batch))
            for m in (student, teacher)
        )
    recorded_q, recorded_p, recorded_mixture = (
        torch.from_numpy(np.concatenate([getattr(r.record, name) for r in responses]))
        for name in ("student_logprobs", "teacher_logprobs", "mixture_logprobs")
    )
    assert torch.allclose(q, recorded_q, atol=1e-4)
    assert torch.allclose(p, recorded_p, atol=1e-4)
    assert torch.allclose((0.3 * p.exp() + 0.7 * q.exp()).log(), recorded_mixture, atol=1e-4)
    with torch.no_grad():
        logs = [response_logits(m, batch, VOCABULARY).log_softmax(-1) for m in (student, teacher)]
    reverse = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    entropy = -(logs[0].exp() * logs[0]).sum(-1)
    for name, expected in (("reverse_kl", reverse), ("entropy", entropy)):
        found = torch.from_numpy(np.concatenate([getattr(r.record, name) for r in responses]))
        assert torch.allclose(found, expected, atol=1e-4), name


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_row_does_not_depend_on_its_batch_order_or_neighbours(kind):
    student, teacher = make(kind, 1), make(kind, 2)
    together = run(student, mixture=Mixture(teacher, 0.3))
    alone = [
        run(student, [p], [r], mixture=Mixture(teacher, 0.3))[0] for p, r in zip(PROMPTS, ROWS, strict=True)
    ]
    turned = run(student, PROMPTS[::-1], ROWS[::-1], mixture=Mixture(teacher, 0.3), batch=2)[::-1]
    for a, b, c in zip(together, alone, turned, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() == c.tokens.tolist()
    assert len({len(r.tokens) for r in together}) > 1, (
        "rows of different lengths, so that finished ones were dropped"
    )


def test_responses_end_with_their_first_eos_and_nothing_beyond_the_vocabulary_is_drawn():
    responses = [r for seed in range(8) for r in run(make("llama", 1), seed=seed)]
    assert any(r.finished for r in responses) and any(not r.finished for r in responses)
    for response in responses:
        ids = response.tokens.tolist()
        assert max(ids) < VOCABULARY
        assert EOS not in ids[:-1]
        assert response.finished == (ids[-1] == EOS)
        assert response.finished or len(ids) == 12


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("alpha", "fits"), [(0.2, True), (0.3, False)])
def test_frequencies_follow_the_mixture(alpha, fits, kind):
    """First tokens of many rows against alpha p + (1 - alpha) q with alpha = 0.2: 0.3 is told apart."""
    student, teacher = make(kind, 1), make(kind, 2)
    prompt = PROMPTS[0]
    count = 20_000
    found = sample(
        student,
        [prompt] * count,
        range(count),
        Sampling(max_tokens=1),
        seed=5,
        step=0,
        ends=[EOS],
        pad=0,
        vocabulary=VOCABULARY,
        mixture=Mixture(teacher, alpha),
        batch=250,
    )
    with torch.no_grad():
        q, p = (
            m(torch.from_numpy(prompt[None].astype(np.int64))).logits[0, -1, :VOCABULARY].double().softmax(-1)
            for m in (student, teacher)
        )
    observed = np.bincount([r.tokens[0] for r in found], minlength=VOCABULARY)
    assert (chisquare(observed, count * (0.2 * p + 0.8 * q).numpy()).pvalue > 1e-3) == fits


def test_rollouts_refuse_filters():
    with pytest.raises(ValueError, match="only a temperature"):
        sample(
            make("llama", 1),
            PROMPTS,
            ROWS,
            Sampling(top_k=3),
            seed=0,
            step=0,
            ends=[EOS],
            pad=0,
            vocabulary=VOCABULARY,
            record=True,
        )


def test_filters_of_evaluation():
    model = make("llama", 1)
    shared = {"seed": 3, "step": 0, "ends": [EOS], "pad": 0, "vocabulary": VOCABULARY}
    greedy = sample(model, PROMPTS, ROWS, Sampling(top_k=1, max_tokens=3), **shared)
    for prompt, response in zip(PROMPTS, greedy, strict=True):
        ids = torch.from_numpy(prompt[None].astype(np.int64))
        with torch.no_grad():
            assert response.tokens[0] == model(ids).logits[0, -1, :VOCABULARY].argmax().item()
    blocked = sample(model, PROMPTS, ROWS, Sampling(no_repeat_ngram=2, max_tokens=30), **shared)
    for prompt, response in zip(PROMPTS, blocked, strict=True):
        pairs = list(zip([*prompt, *response.tokens], [*prompt, *response.tokens][1:], strict=False))
        assert len(pairs) == len(set(pairs))


def test_draw_never_takes_a_token_of_probability_zero():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).repeat(1001, 1)
    found = draw(probabilities, torch.linspace(0, 1 - 2**-53, 1001, dtype=torch.float64))
    assert set(found.tolist()) == {1, 3}


def test_random_numbers_belong_to_rows_and_positions():
    whole = uniforms(1, 2, [5, 6, 7], 8)
    assert (uniforms(1, 2, [7], 4)[0] == whole[2, :4]).all()
    assert (
        len(np.unique(np.concatenate([whole, uniforms(2, 2, [5, 6, 7], 8), uniforms(1, 3, [5, 6, 7], 8)])))
        == 72
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ngrams_are_blocked_as_transformers_does(size):
    """Growing rows of a small vocabulary, against the processor that reads each whole row again."""
    random = np.random.default_rng(size)
    prompts = [random.integers(0, 4, 5), random.integers(0, 4, 5)]
    ours, theirs = NgramBlock(size, prompts), NoRepeatNGramLogitsProcessor(size)
    rows = torch.from_numpy(np.stack(prompts))
    blocked = 0
    for _ in range(12):
        logits = torch.randn(2, 5)
        expected = theirs(rows, logits)
        assert torch.equal(ours.block([0, 1], logits), expected)
        blocked += int(expected.isinf().sum())
        drawn = torch.from_numpy(random.integers(0, 4, 2))
        for row, token in enumerate(drawn.tolist()):
            ours.add(row, token)
        rows = torch.cat([rows, drawn[:, None]], 1)
    assert blocked > 3


def test_temperature_is_that_of_both_models():
    """Recorded values are those of logits divided by the temperature."""
    student, teacher = make("llama", 1), make("llama", 2)
    found = sample(
        student,
        PROMPTS,
        ROWS,
        Sampling(max_tokens=12, temperature=0.7),
        seed=1,
        step=2,
        ends=[EOS],
        pad=0,
        vocabulary=VOCABULARY,
        mixture=Mixture(teacher, 0.3),
        record=True,
    )
    batch = collate([(p, r.tokens) for p, r in zip(PROMPTS, found, strict=True)], 0)
    with torch.no_grad():
        q, p = (
            token_logprobs(response_logits(m, batch, VOCABULARY) / 0.7, response_tokens(batch))
            for m in (student, teacher)
        )
    for name, expected in (("student_logprobs", q), ("teacher_logprobs", p)):
        assert torch.allclose(
            torch.from_numpy(np.concatenate([getattr(r.record, name) for r in found])), expected, atol=1e-4
        )


def test_top_p_keeps_the_smallest_set_of_that_probability():
    model, prompt, count = make("llama", 1), PROMPTS[0], 5000
    found = sample(
        model,
        [prompt] * count,
        range(count),
        Sampling(max_tokens=1, top_p=0.6),
        seed=5,
        step=0,
        ends=[EOS],
        pad=0,
        vocabulary=VOCABULARY,
        batch=250,
    )
    with torch.no_grad():
        p = (
            model(torch.from_numpy(prompt[None].astype(np.int64)))
            .logits[0, -1, :VOCABULARY]
            .double()
            .softmax(-1)
            .numpy()
        )
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(p[order].cumsum(), 0.6)) + 1]
    observed = np.bincount([r.tokens[0] for r in found], minlength=VOCABULARY)
    assert 1 < len(kept) < VOCABULARY and set(np.flatnonzero(observed)) == set(kept)
    assert chisquare(observed[kept], count * p[kept] / p[kept].sum()).pvalue > 1e-3


@pytest.mark.parametrize("how", ["plain", "recorded", "mixed"])
def test_a_model_that_has_diverged(how):
    model = make("llama", 1)
    model.lm_head.weight.data.fill_(float("nan"))
    mixture = Mixture(make("llama", 2), 0.3) if how == "mixed" else None
    with pytest.raises(UserError, match="its logits are not numbers"):
        run(model, mixture=mixture, record=how != "plain")


def test_the_teachers_hidden_states_are_those_of_one_pass():
    student, teacher = make("gpt2", 1), make("llama", 2)
    found = run(student, mixture=Mixture(teacher, 0.3), record=True)
    batch = collate([(p, r.tokens) for p, r in zip(PROMPTS, found, strict=True)], 0)
    states = torch.cat([r.record.teacher_hidden for r in found])
    assert torch.allclose(states, response_hidden(teacher, batch), atol=1e-5)
