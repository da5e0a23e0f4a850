"""The exact study: what is claimed to be exact is, against autograd of the KL of whole sequences."""

import math

import pytest
import torch

from minillm import objectives
from minillm.config.estimators import Estimators
from minillm.config.sections import Style
from minillm.config.stage_settings import EstimatorSettings
from minillm.evaluation import signal_estimators
from minillm.evaluation.estimators import (
    MIXED,
    OWN,
    Family,
    constants_of,
    gradient_of_each,
    measure,
    moments,
    pair,
    sequence_kl,
    sequence_probabilities,
    study,
)
from minillm.evaluation.signal_estimators import SIGNALS, position_gradient, prefix_weights
from minillm.publish.estimators import run_stage

EXACT_OWN = ["Eq. 2", "Eq. 2 with its -1", "Eq. 3", "Eq. 3, expected rewards", "reward + KL, no single-step"]
FAMILY = Family.of(3, 3)
SIZES = {"near": 0.1, "far": 2.0, "disjoint": 3.0}


def test_the_family_is_every_sequence_once():
    assert len(FAMILY.tokens) == 1 + 2 + 4 + 8  # EOS after 0, 1 or 2 tokens; three tokens without one
    table = torch.randn(FAMILY.rows, 3, dtype=torch.float64)
    assert FAMILY.logprobs(table).sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_sequence_kl_is_the_expected_sum_of_token_kls():
    """Chain rule, by a recursion over prefixes in another style."""
    student, teacher = pair(FAMILY, 3, "far", 2.0, 5)
    index = {
        tuple(map(int, w[:t])): int(FAMILY.prefixes[i, t])
        for i, w in enumerate(FAMILY.tokens)
        for t in range(3)
    }

    def kl(prefix):
        if len(prefix) == 3 or prefix[-1:] == (0,):
            return 0.0
        q, p = (t[index[prefix]].softmax(-1).tolist() for t in (student, teacher))
        return sum(q[v] * (math.log(q[v] / p[v]) + kl((*prefix, v))) for v in range(3))

    assert sequence_kl(FAMILY, student, teacher).item() == pytest.approx(kl(()), abs=1e-12)


@pytest.mark.parametrize("distance", SIZES)
@pytest.mark.parametrize("name", EXACT_OWN)
def test_exact_estimators_of_own_samples(name, distance):
    for seed in range(5):
        exact, mean, variance = measure(
            FAMILY, *pair(FAMILY, 3, distance, SIZES[distance], seed), OWN[name], 0.0
        )
        assert (mean - exact).abs().max() < 1e-6 * exact.norm(), seed
        assert variance > 0


@pytest.mark.parametrize("distance", SIZES)
@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_exact_under_mixing(alpha, distance):
    for seed in range(5):
        student, teacher = pair(FAMILY, 3, distance, SIZES[distance], seed)
        exact, mean, variance = measure(FAMILY, student, teacher, MIXED["products up to each reward"], alpha)
        assert (mean - exact).abs().max() < 1e-6 * exact.norm(), seed
        assert variance > 0
        # Not because all weights are near 1 there: one factor instead of the product is off by thousands of
        # times as much.
        _, other, _ = measure(FAMILY, student, teacher, MIXED["Eq. 5, last factors"], alpha)
        assert (other - exact).abs().max() > 1e-3 * exact.norm(), seed


def test_biased_ones_are_biased_and_the_single_steps_weight_changes_no_mean():
    student, teacher = pair(FAMILY, 3, "far", 2.0, 1)
    means = {}
    for name in MIXED.keys() - {"products up to each reward"}:
        exact, means[name], _ = measure(FAMILY, student, teacher, MIXED[name], 0.2)
        assert (means[name] - exact).norm() > 0.02 * exact.norm(), name
    weighted, unweighted = means["Eq. 5, last factors"], means["last factors, single-step unweighted"]
    assert torch.allclose(weighted, unweighted, atol=1e-12)
    for name in OWN.keys() - set(EXACT_OWN):
        exact, mean, _ = measure(FAMILY, student, teacher, OWN[name], 0.0)
        assert (mean - exact).norm() > 0.001 * exact.norm(), name


def test_mean_and_variance_are_those_of_samples():
    """Sequences are drawn and their gradients averaged: the enumeration is right about both moments."""
    student, teacher = pair(FAMILY, 3, "middle", 0.5, 2)
    _, mean, variance = measure(FAMILY, student, teacher, OWN["Eq. 2"], 0.0)
    table = student.clone().requires_grad_()
    probability = FAMILY.logprobs(student).sum(1).exp()
    logratio = (FAMILY.logprobs(teacher) - FAMILY.logprobs(student)) * FAMILY.mask
    gradients = []
    for i in range(len(FAMILY.tokens)):  # REINFORCE by hand: -sum_t R_t grad log q
        to_go = logratio[i].flip(0).cumsum(0).flip(0)
        gradients.append(torch.autograd.grad(-(to_go * FAMILY.logprobs(table)[i]).sum(), table)[0])
    gradients = torch.stack(gradients)
    drawn = torch.multinomial(
        probability, 200_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    sample = gradients[drawn]
    assert (sample.mean(0) - mean).norm() < 5 * (variance / 200_000) ** 0.5
    assert sample.var(0).sum().item() == pytest.approx(variance.item(), rel=0.05)


def test_table_and_figure_are_written(tmp_path):
    settings = Estimators(vocabulary=2, horizon=2, seeds=(1,), alphas=(0.2,), distances={"near": 0.1})
    run_stage(EstimatorSettings(stage="estimators", study=settings, style=Style()), out=tmp_path)
    text = (tmp_path / "tables/estimators.md").read_text()
    assert "| student | Eq. 3 | 0, " in text
    assert (
        len((tmp_path / "tables/estimators.csv").read_text().splitlines())
        == 1 + len(OWN) + len(MIXED) + len(SIGNALS)
        == 1 + len(study(settings)) + len(signal_estimators.study(settings))
    )
    assert "| student, discount 0 | sampled token | 0, " in text
    assert (tmp_path / "figures/estimators.png").stat().st_size > 10_000


# --- signals of one position
EXACT_SIGNALS = [
    "whole vocabulary",
    "sampled token",
    "sampled token, baseline of all (vOPD)",
    "sampled token, baseline of the top 2 (vOPD)",
]


def signal(name, student, teacher):
    each = gradient_of_each(FAMILY, student, teacher, SIGNALS[name], 0.0)
    return moments(sequence_probabilities(FAMILY, student, teacher, 0.0), each)


def test_the_gradient_of_each_position_is_the_single_step_terms_mean():
    """And that of a loop over prefixes, by hand: q (log q/p - KL) at each, times how often it is reached."""
    student, teacher = pair(FAMILY, 3, "far", 2.0, 5)
    exact = position_gradient(FAMILY, student, teacher)
    _, mean, _ = measure(FAMILY, student, teacher, OWN["single-step alone"], 0.0)
    assert torch.allclose(exact, mean, atol=1e-12)
    q, p = student.softmax(-1), teacher.softmax(-1)
    probability = sequence_probabilities(FAMILY, student, teacher, 0.0).tolist()
    right = torch.zeros_like(exact)
    for i, weight in enumerate(probability):
        for t in range(int(FAMILY.mask[i].sum())):
            row = int(FAMILY.prefixes[i, t])
            gap = [math.log(a / b) for a, b in zip(q[row].tolist(), p[row].tolist(), strict=True)]
            kl = sum(a * g for a, g in zip(q[row].tolist(), gap, strict=True))
            for v in range(3):
                right[row, v] += weight * q[row, v] * (gap[v] - kl)
    assert torch.allclose(exact, right, atol=1e-12)


@pytest.mark.parametrize("distance", SIZES)
def test_which_signals_are_exact(distance):
    """A baseline changes no mean, whichever it is; a set of entries and a floor do."""
    for seed in range(3):
        student, teacher = pair(FAMILY, 3, distance, SIZES[distance], seed)
        exact = position_gradient(FAMILY, student, teacher)
        spreads = {}
        for name in SIGNALS:
            mean, variance = signal(name, student, teacher)
            off = (mean - exact).norm() / exact.norm()
            assert (off < 1e-9) == (name in EXACT_SIGNALS) or "floor" in name, name
            spreads[name] = variance.item()
        assert spreads["whole vocabulary"] < min(spreads[name] for name in EXACT_SIGNALS[1:])
        assert len(set(spreads.values())) > len(EXACT_SIGNALS)


def test_the_floor_is_a_bias_where_it_is_reached():
    student, teacher = pair(FAMILY, 3, "disjoint", 3.0, 1)
    mean, _ = signal("sampled token, floor (REOPOLD)", student, teacher)
    exact = position_gradient(FAMILY, student, teacher)
    assert (mean - exact).norm() > 0.1 * exact.norm()


def test_prefix_weights_fall_from_the_first_token_to_the_last():
    student, teacher = pair(FAMILY, 3, "far", 2.0, 1)
    constants = constants_of(FAMILY, student, teacher, 0.0)
    weights = prefix_weights(constants)
    for i in range(len(FAMILY.tokens)):
        n = int(FAMILY.mask[i].sum())
        gaps = constants.rewards[i, :n].abs().tolist()
        drifted = [sum(gaps[:t]) / max(sum(gaps[: n - 1]), 1e-8) for t in range(n)]
        assert weights[i, :n].tolist() == pytest.approx([1 + 0.5 * (1 - d) for d in drifted], rel=1e-9)
        assert weights[i, n - 1] == pytest.approx(1.0 if n > 1 else 1.5)
    assert objectives.reverse_kl(student, teacher).min() > 0
