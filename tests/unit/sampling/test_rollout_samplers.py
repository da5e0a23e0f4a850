"""Rollouts with top-p, with tokens that the teacher replaces, and with an early end.

The reference passes each model over whole rows, in float64, and follows the rule in numpy, token by token.
"""

import dataclasses

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from architectures import make as architecture
from torch.testing import assert_close

from minillm.config.sampler import EarlyEnd
from minillm.config.sections import Sampling
from minillm.sampling import one_shape
from minillm.sampling.draw import Replacement, corrected
from minillm.sampling.early_end import agreement
from minillm.sampling.sample import Mixture, sample

VOCABULARY, PAD, EOS, END, HORIZON, TEMPERATURE = 11, 12, 0, 2, 14, 3.0
OURS = [
    np.array(ids, dtype=np.int32)
    for ids in ([3, 4, 5, 6], [7], [1, 2], [9, 8, 7, 6, 5], [0, 4], [2], [5, 5, 1], [10, 3])
]
THEIRS = [
    np.array(ids, dtype=np.int32)
    for ids in ([1], [7, 7, 3, 10, 2, 4, 6], [5], [9, 8], [0, 4, 1, 1], [2, 3, 2], [6], [10, 3, 1, 4, 5, 9])
]
COUNT, SEED, STEP = len(OURS), 3, 2
# Caches of one shape, and position by position.
PAIRS = [("gpt2", "llama"), ("gpt_neo", "mistral-sliding")]


def models(names):
    return [architecture(ARCHITECTURES[name], seed).double() for seed, name in enumerate(names, 1)]


def run(student, teacher, rows=range(COUNT), two=True, top_p=1.0, record=True, **more):
    """Samples of these rows; `more` are parts of the mixture, batch, budget or seed."""
    parts = {key: more.pop(key) for key in ("teacher_top_k", "early_end", "alpha") if key in more}
    mixture = Mixture(
        teacher, prompts=[THEIRS[i] for i in rows] if two else None, end=END if two else None,
        **({"alpha": 0.0} | parts),
    )  # fmt: skip
    chosen = Sampling(temperature=TEMPERATURE, top_p=top_p, max_tokens=HORIZON)
    how = {"seed": SEED, "step": STEP, "ends": [EOS], "pad": PAD, "vocabulary": VOCABULARY, "record": record}
    return sample(student, [OURS[i] for i in rows], list(rows), chosen, mixture=mixture, **(how | more))


def laws(student, teacher, i, tokens, two=True):
    """(q, p) at each token of row i's response, (length, vocabulary) probabilities."""
    exchanged = [END, 1, EOS, *range(3, VOCABULARY)] if two else [*range(VOCABULARY)]
    found = []
    for model, prompt, order in (
        (student, OURS[i], [*range(VOCABULARY)]),
        (teacher, THEIRS[i] if two else OURS[i], exchanged),
    ):
        ids = torch.tensor([prompt.tolist() + list(map(int, tokens))])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1, order]
        e = np.exp(logits.numpy() / TEMPERATURE)
        found.append(e / e.sum(-1, keepdims=True))
    return found


def first_above(probabilities, u):
    """Inverse transform by a loop."""
    total = 0.0
    for token, p in enumerate(probabilities):
        total += p
        if total > u * sum(probabilities):
            return token
    raise AssertionError("rounding")


def numbers(seed, row, count=HORIZON):
    return np.random.Generator(np.random.Philox(key=[seed, STEP], counter=[0, 0, row, 0])).random(count)


def check_records(q, p, response, mixture):
    """All recorded values but the marks; `mixture` (length, vocabulary)."""
    at = np.arange(len(response.tokens)), response.tokens
    for name, values in (
        ("student_logprobs", np.log(q[at])),
        ("teacher_logprobs", np.log(p[at])),
        ("mixture_logprobs", np.log(mixture[at])),
        ("reverse_kl", (q * np.log(q / p)).sum(-1)),
        ("entropy", -(q * np.log(q)).sum(-1)),
    ):
        assert_close(getattr(response.record, name), values.astype(np.float32), atol=1e-5, rtol=0, msg=name)


# --- the teacher replaces tokens
def by_rule(q, p, k, u, spare):
    """(token, whether the teacher drew it, the distribution of the token) at one position."""
    likeliest = sorted(range(VOCABULARY), key=lambda v: -p[v])[:k]
    proposed = first_above(q, u)
    law = np.array([(q[v] if v in likeliest else 0.0) for v in range(VOCABULARY)])
    law += (1 - sum(q[v] for v in likeliest)) * p
    if proposed in likeliest:
        return proposed, False, law
    return first_above(p, spare), True, law


@pytest.mark.parametrize("two", [True, False])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("names", PAIRS)
def test_every_replaced_token_follows_the_rule(names, k, two):
    student, teacher = models(names)
    replaced = kept = 0
    for i, response in enumerate(run(student, teacher, two=two, teacher_top_k=k)):
        q, p = laws(student, teacher, i, response.tokens, two)
        u, spare = numbers(SEED, i), numbers(SEED + 2**45, i)
        rule = [by_rule(q[t], p[t], k, u[t], spare[t]) for t in range(len(response.tokens))]
        assert response.tokens.tolist() == [token for token, _, _ in rule]
        assert response.record.replaced.tolist() == [by for _, by, _ in rule]
        check_records(q, p, response, np.stack([law for _, _, law in rule]))
        assert response.finished == (response.tokens[-1] == EOS)
        replaced, kept = replaced + response.record.replaced.sum(), kept + (~response.record.replaced).sum()
    assert min(replaced, kept) > 5


@pytest.mark.parametrize("k", [1, 3, 10, 11])
def test_the_distribution_of_replaced_tokens_enumerated(k):
    """Both random numbers over a fine grid: each token's share is its probability."""
    generator = np.random.default_rng(k)
    q, p = (generator.dirichlet(np.full(VOCABULARY, 0.5)) for _ in range(2))
    fine = 300
    grid = (np.arange(fine) + 0.5) / fine
    u, spare = (torch.from_numpy(x.ravel().copy()) for x in np.meshgrid(grid, grid))
    tokens, replaced, law = corrected(
        torch.from_numpy(q).expand(len(u), -1), torch.from_numpy(p).expand(len(u), -1), u,
        Replacement(k, spare),
    )  # fmt: skip
    expected = by_rule(q, p, k, 0.5, 0.5)[2]
    assert_close(law[0].numpy(), expected, atol=1e-12, rtol=0)
    assert law[0].sum().item() == pytest.approx(1.0, abs=1e-12)
    shares = np.bincount(tokens.numpy(), minlength=VOCABULARY) / len(u)
    assert np.abs(shares - expected).max() < 2 / fine
    outside = sum(q[v] for v in np.argsort(-p)[k:])
    assert replaced.double().mean().item() == pytest.approx(outside, abs=VOCABULARY / fine)


def test_ties_with_the_last_of_the_likeliest_belong_to_them():
    p, q = torch.tensor([[0.4, 0.2, 0.2, 0.2]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    for k, inside in ((1, 0.1), (2, 1.0)):
        law = corrected(q, p, torch.tensor([0.05]).double(), Replacement(k, torch.tensor([0.5]).double()))[2]
        expected = q if inside == 1 else torch.tensor([[0.1, 0, 0, 0]]) + (1 - inside) * p
        assert_close(law, expected)


def test_what_is_not_a_number_is_reported():
    for bad in (0, 1):
        pair = [torch.full((2, 4), 0.25), torch.full((2, 4), 0.25)]
        pair[bad][1] = torch.nan
        u = torch.tensor([0.3, 0.3]).double()
        assert corrected(*pair, u, Replacement(2, u))[0].tolist() == [1, -1]


@pytest.mark.parametrize("names", PAIRS)
def test_as_many_as_the_vocabulary_has_replace_nothing(names):
    student, teacher = models(names)
    plain = run(student, teacher)
    for response, other in zip(run(student, teacher, teacher_top_k=99), plain, strict=True):
        assert response.tokens.tolist() == other.tokens.tolist()
        assert not response.record.replaced.any() and other.record.replaced is None
        assert_close(response.record.mixture_logprobs, other.record.student_logprobs)


# --- top-p
@pytest.mark.parametrize("names", PAIRS)
def test_top_p_draws_as_in_evaluation_and_records_whole_distributions(names):
    student, teacher = models(names)
    found = run(student, teacher, top_p=0.6)
    plain = Sampling(temperature=TEMPERATURE, top_p=0.6, max_tokens=HORIZON)
    how = {"seed": SEED, "step": STEP, "ends": [EOS], "pad": PAD, "vocabulary": VOCABULARY}
    evaluated = sample(student, OURS, range(COUNT), plain, **how)
    alone = sample(student, OURS, range(COUNT), plain, record=True, **how)
    changed = 0
    for i, response in enumerate(found):
        assert response.tokens.tolist() == evaluated[i].tokens.tolist() == alone[i].tokens.tolist()
        q, p = laws(student, teacher, i, response.tokens)
        check_records(q, p, response, q)
        assert_close(alone[i].record.student_logprobs, response.record.student_logprobs, atol=1e-5, rtol=0)
        for t, token in enumerate(response.tokens):
            # In the order of probability, what is before the token has less than 0.6.
            assert q[t][q[t] > q[t][token]].sum() < 0.6
            kept = np.where([q[t][q[t] > x].sum() < 0.6 for x in q[t]], q[t], 0.0)
            assert token == first_above(kept, numbers(SEED, i)[t])
            changed += token != first_above(q[t], numbers(SEED, i)[t])
    assert changed > 5


def test_the_teacher_replaces_what_top_p_proposes():
    student, teacher = models(PAIRS[0])
    for i, response in enumerate(run(student, teacher, top_p=0.6, teacher_top_k=4)):
        q, p = laws(student, teacher, i, response.tokens)
        u, spare = numbers(SEED, i), numbers(SEED + 2**45, i)
        every = []
        for t in range(len(response.tokens)):
            kept = np.where([q[t][q[t] > x].sum() < 0.6 for x in q[t]], q[t], 0.0)
            every.append(by_rule(kept / kept.sum(), p[t], 4, u[t], spare[t]))
        assert response.tokens.tolist() == [token for token, _, _ in every]
        check_records(q, p, response, np.stack([law for _, _, law in every]))


# --- early end
def test_agreement_counts_the_entries_that_two_models_share():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(40, VOCABULARY, generator=generator) for _ in range(2))
    for k in (1, 4, 10, 11, 99):
        expected = [
            len(set(np.argsort(-x)[:k].tolist()) & set(np.argsort(-y)[:k].tolist())) / min(k, VOCABULARY)
            for x, y in zip(a.numpy(), b.numpy(), strict=True)
        ]
        assert agreement(a, b, k).tolist() == expected
    assert (agreement(a, a, 4) == 1).all()


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("events", [1, 3])
@pytest.mark.parametrize("names", PAIRS)
def test_a_response_ends_where_the_models_have_drifted_apart(names, events, alpha):
    student, teacher = models(names)
    how = EarlyEnd(top_k=4, threshold=0.5, events=events)
    whole = run(student, teacher, alpha=alpha, early_end=dataclasses.replace(how, events=99))
    cut = finished = 0
    for i, response in enumerate(run(student, teacher, alpha=alpha, early_end=how)):
        tokens = whole[i].tokens.tolist()
        q, p = laws(student, teacher, i, tokens)
        apart = [
            len(set(np.argsort(-x)[:4].tolist()) & set(np.argsort(-y)[:4].tolist())) < 2
            for x, y in zip(q, p, strict=True)
        ]
        assert whole[i].record.drifted.tolist() == apart and not whole[i].cut
        length = next((t + 1 for t in range(len(apart)) if sum(apart[: t + 1]) == events), len(apart))
        assert response.tokens.tolist() == tokens[:length]
        assert response.record.drifted.tolist() == apart[:length]
        assert response.finished == (tokens[length - 1] == EOS)
        assert response.cut == (sum(apart[:length]) == events and not response.finished)
        mixture = alpha * p[:length] + (1 - alpha) * q[:length]
        check_records(q[:length], p[:length], response, mixture)
        assert len(response.record.teacher_hidden) == length
        cut, finished = cut + response.cut, finished + response.finished
    assert cut > 1 and cut + finished <= COUNT


# --- all of them
WAYS = [
    {"top_p": 0.6},
    {"teacher_top_k": 3},
    {"teacher_top_k": 3, "top_p": 0.8, "early_end": EarlyEnd(top_k=4, threshold=0.5, events=3)},
    {"alpha": 0.3, "early_end": EarlyEnd(top_k=4, threshold=0.5, events=2)},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way))
@pytest.mark.parametrize("names", PAIRS)
def test_rows_do_not_depend_on_their_batch(names, way):
    student, teacher = models(names)
    whole = [(r.tokens.tolist(), r.finished, r.cut) for r in run(student, teacher, **way)]
    for batch, budget in ((3, 0), (1, 0), (8, 44)):
        found = run(student, teacher, batch=batch, budget=budget, **way)
        assert [(r.tokens.tolist(), r.finished, r.cut) for r in found] == whole
    turned = run(student, teacher, rows=range(COUNT)[::-1], batch=5, **way)
    assert [(r.tokens.tolist(), r.finished, r.cut) for r in turned][::-1] == whole


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way))
def test_padded_vocabularies_change_nothing(way):
    student, teacher = models(("llama", "llama"))
    before = run(student, teacher, **way)
    for model, rows in ((student, 20), (teacher, 17)):
        model.resize_token_embeddings(rows, mean_resizing=False)
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            matrix.data[13:] = 3 * torch.randn_like(matrix.data[13:])
    after = run(student, teacher, **way)
    assert [r.tokens.tolist() for r in before] == [r.tokens.tolist() for r in after]
    assert [r.cut for r in before] == [r.cut for r in after]


def test_what_cannot_be_drawn_is_refused():
    student, teacher = models(PAIRS[0])
    assert one_shape.possible(student) and not one_shape.possible(models(PAIRS[1])[0])
    with pytest.raises(ValueError, match="with alpha 0 a top-p"):
        run(student, teacher, top_p=0.9, alpha=0.2)
    for more in ({"teacher_top_k": 2}, {"early_end": EarlyEnd()}, {}):
        mixture = Mixture(teacher, 0.0, [0] * COUNT, **more)
        with pytest.raises(ValueError, match="coins: no top-p, and the teacher reads too late"):
            sample(
                student, OURS, range(COUNT), Sampling(top_p=1.0 if more else 0.9), seed=1, step=0,
                ends=[EOS], pad=PAD, vocabulary=VOCABULARY, mixture=mixture, record=True,
            )  # fmt: skip
