"""The exact study: what is claimed to be exact is, against autograd of the KL of whole sequences."""

import math

import pytest
import torch

from minillm.config.estimators import Estimators
from minillm.config.sections import Style
from minillm.config.stage_settings import EstimatorSettings
from minillm.evaluation.estimators import MIXED, OWN, Family, measure, pair, sequence_kl, study
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
        == 1 + len(OWN) + len(MIXED)
        == 1 + len(study(settings))
    )
    assert (tmp_path / "figures/estimators.png").stat().st_size > 10_000
