"""Weights of tokens by position, entropy, drift, sign and divergence, against loops over lists."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from objectives_case import mask_layouts
from onpolicy_case import (
    COUNT,
    EOS,
    WHOLE,
    OneProcess,
    Prompts,
    Tokenizer,
    gradient,
    pair,
    settings,
    task,
)
from parts_case import batch, by_hand, chosen, expected, softmax
from ranks import ranks
from torch.nn import functional
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.objective_parts import Signal, Term, TokenWeights
from minillm.config.sections import Sampling
from minillm.training.dev_set import Dev
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Memory, collect_rollouts
from minillm.training.token_weights import token_weights

SPECIAL = frozenset((EOS, 3))
FACTORS = {
    "none": {},
    "first": {"first": 0.3},
    "discount": {"discount": 0.8},
    "discrepancy": {"prefix_discrepancy": 0.5},
    "positive": {"advantage": "positive"},
    "not positive": {"advantage": "not_positive"},
    "student's entropy": {"student_entropy_above": 1.9, "student_entropy_at_most": 2.2},
    "teacher's entropy": {"teacher_entropy_above": 1.9, "teacher_entropy_at_most": 2.2},
    "reverse KL": {"reverse_kl_above": 0.2, "reverse_kl_at_most": 0.5},
    "TIP": {"uncertain_or_wrong": 0.4},
    "special": {"mask_special": True},
    "truncated": {"truncated": 0.25},
    "several": {"discount": 0.9, "prefix_discrepancy": 1.0, "mask_special": True, "uncertain_or_wrong": 0.5},
}


def made():
    """The batch, with a teacher's entropy."""
    student, teacher, samples = batch(chosen("reverse_kl"))
    values = torch.rand(samples.mask.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return student, teacher, dataclasses.replace(samples, teacher_entropy=(1.5 + values) * samples.mask)


def factors_by_hand(samples, s):
    """One list of weights a response, token by token."""
    columns = ("student_logprobs", "teacher_logprobs", "entropy", "teacher_entropy", "reverse_kl")
    rows = [
        {name: getattr(samples, name)[i][samples.mask[i].bool()].tolist() for name in columns}
        for i in range(len(samples.responses))
    ]

    def every(name):
        return [value for row in rows for value in row[name]]

    cap = float(np.quantile(every("entropy"), 0.98))
    entropies, divergences = [min(x, cap) for x in every("entropy")], every("reverse_kl")
    found = []
    for row, response in zip(rows, samples.responses, strict=True):
        n = len(response)
        gaps = [b - a for a, b in zip(row["student_logprobs"], row["teacher_logprobs"], strict=True)]
        scores = []
        for x, d in zip(row["entropy"], row["reverse_kl"], strict=True):
            h = (min(x, cap) - min(entropies)) / (max(entropies) - min(entropies))
            k = (d - min(divergences)) / (max(divergences) - min(divergences))
            scores.append(1 - (1 - h) * (1 - k))
        best = sorted(range(n), key=lambda t: (-scores[t], t))[: math.ceil(s.uncertain_or_wrong * n)]
        weights = []
        for t, token in enumerate(response.tolist()):
            w = s.discount**t if t < s.first * n else 0.0
            drift = sum(map(abs, gaps[: n - 1]))
            w *= 1 + s.prefix_discrepancy * (1 - sum(map(abs, gaps[:t])) / drift if drift else 1)
            w *= {"any": True, "positive": gaps[t] > 0, "not_positive": gaps[t] <= 0}[s.advantage]
            for name, values in (
                ("student_entropy", row["entropy"]),
                ("teacher_entropy", row["teacher_entropy"]),
                ("reverse_kl", row["reverse_kl"]),
            ):
                low, high = getattr(s, f"{name}_above"), getattr(s, f"{name}_at_most")
                w *= (low is None or values[t] > low) and (high is None or values[t] <= high)
            w *= t in best
            w *= 0.0 if s.mask_special and token in SPECIAL else 1.0
            w *= s.truncated if response[-1] != EOS else 1.0
            weights.append(w)
        found.append(weights)
    return found


def assert_by_hand(samples, s, varied=True):
    found, by_hand_ = token_weights(samples, s, eos=EOS, special=SPECIAL), factors_by_hand(samples, s)
    for row, (weights, mask) in enumerate(zip(by_hand_, samples.mask.bool(), strict=True)):
        assert_close(found[row][mask], torch.tensor(weights, dtype=torch.float64), atol=1e-12, rtol=0)
        assert (found[row][~mask] == 0).all()
    if varied:
        assert len({round(w, 9) for weights in by_hand_ for w in weights}) > 1, "it weighs"


@pytest.mark.parametrize("name", FACTORS)
def test_each_factor(name):
    _, _, samples = made()
    assert {int(r[-1]) == EOS for r in samples.responses} == {True, False}, "some ended early"
    assert_by_hand(samples, TokenWeights(**FACTORS[name]), varied=name != "none")


@mask_layouts
@pytest.mark.parametrize("name", FACTORS)
def test_under_every_mask(name, mask):
    """Also with holes; what is recorded under the mask is not looked at."""
    _, _, samples = made()
    generator = torch.Generator().manual_seed(1)
    values = {
        f: torch.randn(3, 5, generator=generator, dtype=torch.float64)
        for f in ("student_logprobs", "teacher_logprobs")
    }
    values |= {
        f: 1.5 + torch.rand(3, 5, generator=generator, dtype=torch.float64)
        for f in ("entropy", "teacher_entropy", "reverse_kl")
    }
    tokens = [np.array([5, 3, 4, 2, EOS])[row.bool().numpy()] for row in mask]
    made_up = dataclasses.replace(samples, mask=mask, responses=tokens, **values)
    assert_by_hand(made_up, TokenWeights(**FACTORS[name]), varied=False)


def test_weights_of_1_change_nothing():
    student, teacher, samples = made()
    for objective in ("minillm", "forward_kl"):
        base = settings("default", objective=objective)
        other = dataclasses.replace(base, token_weights=TokenWeights())
        before, after = (gradient(student, samples, task(teacher, s)) for s in (base, other))
        assert before[0] == after[0]
        for name in before[1]:
            assert torch.equal(before[1][name], after[1][name])


def weighted(samples, s, objective="reverse_kl", factor=1.0):
    weights = factors_by_hand(samples, s)

    def token(z_q, z_p, y, place):
        value, derivative = by_hand(objective, z_q, z_p, y)
        w = factor * weights[place[0]][place[1]]
        return w * value, w * derivative

    return token


@pytest.mark.parametrize("name", ["several", "TIP", "special", "discrepancy", "positive"])
def test_weighted_divergences(name):
    student, teacher, samples = made()
    s = TokenWeights(**FACTORS[name])
    settings_ = chosen("reverse_kl", token_weights=s)
    value, derivatives = expected(student, teacher, samples, settings_, weighted(samples, s))
    found = gradient(student, samples, task(teacher, settings_), Launch(micro_batch=3))
    assert found[0] == pytest.approx(value, abs=1e-8)
    for name_, derivative in derivatives.items():
        assert_close(found[1][name_], derivative, atol=1e-8, rtol=1e-8)


def test_normalised_by_the_mini_batch():
    """The mean over the tokens that are kept, of the rows of the mini-batch."""
    student, teacher, samples = made()
    s = TokenWeights(uncertain_or_wrong=0.4, normalise=True)
    settings_ = chosen("reverse_kl", token_weights=s)
    rows = [0, 2, 5]
    student.zero_grad()
    parts, loss = micro_batches(
        OneProcess(student, Launch(micro_batch=1)), task(teacher, settings_), samples, rows
    )
    found = sum(loss(part)[0] for part in parts).item()
    weights = factors_by_hand(samples, s)
    total = 0.0
    for i in rows:
        ids = torch.tensor([[*samples.prompts[i].tolist(), *samples.responses[i].tolist()]])
        first = len(samples.prompts[i]) - 1
        with torch.no_grad():
            q, p = (m(ids).logits[0, first:-1, :11].numpy() for m in (student, teacher))
        total += sum(w * by_hand("reverse_kl", a, b, 0)[0] for w, a, b in zip(weights[i], q, p, strict=True))
    assert found == pytest.approx(total / sum(sum(weights[i]) for i in rows), abs=1e-8)


def test_weights_in_the_long_term():
    """They multiply the advantages, after whitening, and the single-step term, besides its own weights."""
    student, teacher, samples = made()
    base = settings("default", lm_coef=0.0)
    s = TokenWeights(discount=0.5)
    _, terms = losses_of(student, teacher, samples, base)
    _, halved = losses_of(student, teacher, samples, dataclasses.replace(base, token_weights=s))
    # One row, so that the terms of its tokens can be told apart by their weights.
    row = max(range(COUNT), key=lambda i: len(samples.responses[i]))
    parts = [
        losses_of(
            student, teacher, samples, dataclasses.replace(base, token_weights=TokenWeights(first=f)), [row]
        )[1]
        for f in (np.arange(len(samples.responses[row])) + 1) / len(samples.responses[row])
    ]
    whole = losses_of(student, teacher, samples, dataclasses.replace(base, token_weights=s), [row])[1]
    for name in ("long_term", "single_step"):
        tokens = np.diff([0.0, *(part[name] for part in parts)])
        assert whole[name] == pytest.approx(sum(0.5**t * x for t, x in enumerate(tokens)), abs=1e-8)
        assert abs(halved[name] - terms[name]) > 1e-4


def losses_of(student, teacher, samples, settings_, rows=None):
    parts, loss = micro_batches(
        OneProcess(student, WHOLE), task(teacher, settings_), samples, rows or list(range(COUNT))
    )
    value, terms = loss(parts[0])
    return value.item(), {name: x.item() for name, x in terms.items()}


FURTHER = {
    "AOPD": (
        {
            "objective": "squared_log_ratio",
            "signal": Signal(tokens="sampled"),
            "token_weights": TokenWeights(advantage="positive"),
        },
        Term(
            objective="forward_kl",
            signal=Signal(tokens="teacher_topk", top_k=3),
            token_weights=TokenWeights(advantage="not_positive"),
        ),
    ),
    "EOPD without its clip": (
        {"objective": "reverse_kl"},
        Term(
            objective="forward_kl",
            coefficient=0.5,
            signal=Signal(tokens="teacher_topk", top_k=4, renormalise=True),
            token_weights=TokenWeights(teacher_entropy_above=2.0),
        ),
    ),
}


@pytest.mark.parametrize("name", FURTHER)
def test_further_terms(name):
    """Each with its own divergence, set and weights."""
    student, teacher, samples = made()
    first, second = FURTHER[name]
    settings_ = chosen(**first, also=(second,))

    def part(settings_, weights, factor):
        signal = settings_.signal or Signal()
        rows = factors_by_hand(samples, weights or TokenWeights())

        def token(z_q, z_p, y, place):
            more = (signal.tokens, signal.top_k, signal.renormalise)
            value, derivative = by_hand(settings_.objective, z_q, z_p, y, *more)
            w = factor * rows[place[0]][place[1]]
            return w * value, w * derivative

        return token

    parts = (
        part(settings_, settings_.token_weights, 1.0),
        part(second, second.token_weights, second.coefficient),
    )

    def both(*token):
        return tuple(map(sum, zip(*(one(*token) for one in parts), strict=True)))

    value, derivatives = expected(student, teacher, samples, settings_, both)
    found = gradient(student, samples, task(teacher, settings_), Launch(micro_batch=3))
    assert found[0] == pytest.approx(value, abs=1e-8)
    for parameter, derivative in derivatives.items():
        assert_close(found[1][parameter], derivative, atol=1e-8, rtol=1e-8)


def test_a_further_term_beside_minillm():
    """Its teacher's logits are there without the single-step term, too."""
    student, teacher, samples = made()
    base = settings("default", lm_coef=0.0, single_step=False, include_current=True)
    other = dataclasses.replace(base, also=(Term(objective="forward_kl", coefficient=2.0),))
    kl = gradient(student, samples, task(teacher, chosen("forward_kl")))[0]
    before, after = (losses_of(student, teacher, samples, s) for s in (base, other))
    assert set(after[1]) - set(before[1]) == {"also_1"}
    assert after[0] - before[0] == pytest.approx(2 * kl, abs=1e-10)


def test_padding_and_the_order_of_rows_do_not_count():
    student, teacher, samples = made()
    work = task(
        teacher, chosen("reverse_kl", token_weights=TokenWeights(**FACTORS["several"], normalise=True))
    )
    before = gradient(student, samples, work)
    tensors = {n: functional.pad(x, (0, 3)) for n, x in vars(samples).items() if isinstance(x, torch.Tensor)}
    wider = gradient(student, dataclasses.replace(samples, **tensors), work, Launch(micro_batch=2))
    turned = gradient(student, samples, work, Launch(micro_batch=3), order=list(range(COUNT))[::-1])
    for other in (wider, turned):
        assert other[0] == pytest.approx(before[0], abs=1e-9)
        for name in before[1]:
            assert_close(other[1][name], before[1][name], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("cache", [True, False])
def test_the_teachers_entropy(cache):
    """Of fresh and gold rows, on every rank; and the teacher reads along where its log-ratios are weights."""
    weights = TokenWeights(teacher_entropy_above=0.8)
    chosen_ = settings("default", objective="forward_kl", alpha=0.0, student_share=0.6, token_weights=weights)
    dev = Dev([], [], Tokenizer(), Sampling(), 11, 8, 0)
    pairs = [pair() for _ in range(2)]

    def rank(world):
        student, teacher = pairs[world.rank]
        engine = OneProcess(student, WHOLE, world)
        engine.model, engine.launch = student, Launch(eval_batch=3, teacher_cache=cache)
        return collect_rollouts(engine, teacher, Prompts(), dev, chosen_, Memory(0.6), 0, 3)

    one, other = ranks(2, rank)
    assert_close(one.teacher_entropy, other.teacher_entropy, atol=0, rtol=0)
    assert (one.teacher_hidden is not None) == cache and 0 < one.summary["fresh"] < 1
    for i, (prompt, response) in enumerate(zip(one.prompts, one.responses, strict=True)):
        ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
        with torch.no_grad():
            logits = pairs[0][1](ids).logits[0, len(prompt) - 1 : -1, :11].numpy()
        by_hand_ = [-sum(x * math.log(x) for x in softmax(row)) for row in logits]
        assert one.teacher_entropy[i, : len(response)].tolist() == pytest.approx(by_hand_, abs=1e-5)
        assert (one.teacher_entropy[i, len(response) :] == 0).all()


def test_the_teacher_reads_along_for_weights_alone():
    student, teacher = pair()
    dev = Dev([], [], Tokenizer(), Sampling(), 11, 8, 0)
    engine = OneProcess(student, WHOLE)
    engine.model = student

    def collected(**weights):
        chosen_ = settings(
            "default", objective="forward_kl", alpha=0.0, token_weights=TokenWeights(**weights)
        )
        return collect_rollouts(engine, teacher, Prompts(), dev, chosen_, Memory(1.0), 0, 3)

    without, found = collected(discount=0.9), collected(prefix_discrepancy=0.5)
    assert torch.equal(without.teacher_logprobs, without.student_logprobs)
    assert (found.teacher_logprobs - found.student_logprobs).abs().max() > 0.1
    assert (found.reverse_kl[found.mask.bool()] > 0).all() and (found.entropy[found.mask.bool()] > 0).all()
