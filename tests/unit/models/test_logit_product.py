"""Logits in half precision: what all of a token's logits share must not be rounded into them.

Trained GPT-2 has logits around -96: rounded to bf16 there, log-probabilities are off by a tenth of a nat.
"""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from minillm import objectives
from minillm.models import logit_product, tiled_loss
from minillm.models.head import logits_by_tile, token_logprobs
from minillm.models.onednn_layout import packed_head, possible
from minillm.models.tiled_loss import Head

VOCABULARY, WIDTH, TOKENS, OFFSET = 5003, 64, 200, -96.0


def numbers(seed, offset=OFFSET, dtype=torch.bfloat16):
    """(hidden states, matrix with rows to spare): the mean of every token's logits is about `offset`."""
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(VOCABULARY + 30, WIDTH, generator=draws) * 0.15
    mean = torch.randn(WIDTH, generator=draws)
    hidden = torch.randn(TOKENS, WIDTH, generator=draws)
    hidden += ((offset - hidden @ mean) / mean.square().sum()).unsqueeze(-1) * mean
    return hidden.to(dtype), (weight + mean).to(dtype)


def exact(hidden, weight, bias=None):
    logits = hidden.double() @ weight.double().T[:, :VOCABULARY]
    return logits if bias is None else logits + bias.double()[:VOCABULARY]


def heads(hidden, weight, bias, monkeypatch):
    """How logits are made: in training, in sampling on a CPU, on a GPU (its product stands for itself)."""
    head = Head(weight, bias, VOCABULARY)
    made = {"training": head.logits(hidden)}
    if possible(weight):
        made["sampling"] = packed_head(head).logits(hidden)
    with monkeypatch.context() as patched:
        patched.setattr(logit_product, "_has_wide", lambda device: True)
        patched.setattr(logit_product, "_mm", lambda a, b: a.float() @ b.float())
        made["gpu"] = dataclasses.replace(head).logits(hidden)
    return made


def errors(logits, expected, tokens):
    """(standard deviation of the tokens' log ratios, mean KL from what is exact), in nats."""
    found, right = logits.double().log_softmax(-1), expected.log_softmax(-1)
    ratio = token_logprobs(logits.double(), tokens) - token_logprobs(expected, tokens)
    return ratio.std().item(), (right.exp() * (right - found)).sum(-1).mean().item()


@pytest.mark.parametrize("with_bias", [False, True])
def test_log_ratios_at_an_offset(with_bias, monkeypatch):
    """The plain product's error is eight times as large as it is without the offset."""
    hidden, weight = numbers(1)
    bias = torch.randn(len(weight), generator=torch.Generator().manual_seed(2)).bfloat16()
    bias = bias if with_bias else None
    expected = exact(hidden, weight, bias)
    assert abs(expected.mean() - OFFSET) < 1 and 1.5 < expected.std(-1).mean() < 4
    tokens = torch.multinomial(expected.softmax(-1), 1).squeeze(-1)
    plain = torch.nn.functional.linear(hidden, weight, bias)[:, :VOCABULARY]
    deviation, kl = errors(plain, expected, tokens)
    assert deviation > 0.08 and kl > 5e-3, "what the plain product does"
    found = heads(hidden, weight, bias, monkeypatch)
    for how, logits in found.items():
        deviation, kl = errors(logits, expected, tokens)
        limits = (1e-4, 1e-8) if how == "gpu" else (0.02, 2e-4)
        assert (deviation, kl) < limits and kl < limits[1], how
    assert "gpu" in found and found["gpu"].shape == expected.shape


def test_losses_and_gradients_at_an_offset():
    """Reverse KL to a teacher with logits at -96 as well, tile by tile, against float64 and whole logits."""
    hidden, weight = (x.requires_grad_() for x in numbers(1))
    states, theirs = numbers(3)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits, other = exact(*wide), exact(states, theirs)
    expected = objectives.reverse_kl(logits, other).sum()
    expected.backward()
    teacher = logits_by_tile(states, Head(theirs, None, VOCABULARY))
    total = tiled_loss.loss(
        lambda logits, part: objectives.reverse_kl(logits, teacher(part)),
        hidden,
        Head(weight, None, VOCABULARY),
    )
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-3)
    for found, right in zip((hidden.grad, weight.grad), (wide[0].grad, wide[1].grad), strict=True):
        error = (found.double() - right).norm() / right.norm()
        assert error < 0.02, "0.14 and 0.03 with the plain product"
    assert (weight.grad[VOCABULARY:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_precisions_are_as_they_were(dtype):
    """Bit for bit."""
    hidden, weight = numbers(1, dtype=dtype)
    head = Head(weight, None, VOCABULARY)
    plain = torch.nn.functional.linear(hidden, weight[:VOCABULARY])
    assert head.mean is None and torch.equal(head.logits(hidden), plain)


def test_a_cap_sees_the_offset(monkeypatch):
    """So nothing is subtracted; on a GPU the product is in float32 all the same."""
    hidden, weight = numbers(1, offset=-9.0)
    head = Head(weight, None, VOCABULARY, softcap=30.0)
    plain = torch.nn.functional.linear(hidden, weight[:VOCABULARY]).float()
    assert torch.equal(head.logits(hidden), torch.tanh(plain / 30) * 30)
    monkeypatch.setattr(logit_product, "_has_wide", lambda device: True)
    monkeypatch.setattr(logit_product, "_mm", lambda a, b: a.float() @ b.float())
    capped = torch.tanh(exact(hidden, weight) / 30) * 30
    assert_close(head.logits(hidden).double(), capped, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rows", "multiplied"), [(50_257, 50_257), (50_272, 50_272), (60_000, 50_304)])
def test_a_gpu_multiplies_all_rows_that_align_the_logits(rows, multiplied, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        logit_product, "_mm", lambda a, b: shapes.append(b.shape[1]) or torch.zeros(len(a), b.shape[1])
    )
    logits = logit_product.in_float32(torch.zeros(2, 4), torch.zeros(rows, 4), torch.zeros(rows), 50_257)
    assert shapes == [multiplied] and logits.shape == (2, 50_257)


def test_autograd_takes_the_product_that_it_knows(monkeypatch):
    monkeypatch.setattr(logit_product, "_has_wide", lambda device: True)
    hidden, weight = numbers(1)
    assert logit_product.is_wide(hidden, weight)
    assert not logit_product.is_wide(hidden, weight.requires_grad_())
    with torch.no_grad():
        assert logit_product.is_wide(hidden, weight)
