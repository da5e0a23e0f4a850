"""A head that exchanges two columns is the head whose logits are permuted, wherever logits are computed."""

import dataclasses

import pytest
import torch
from tiny_models import make
from torch.testing import assert_close

from minillm import objectives
from minillm.models import logit_product, tiled_loss
from minillm.models.head import head_of, logits_by_tile
from minillm.models.onednn_layout import packed_head, possible
from minillm.models.tiled_loss import Compilable, Head

TOKENS, WIDTH, VOCABULARY, PADDED, SWAP = 23, 6, 17, 20, (3, 16)
ORDER = [*range(3), 16, *range(4, 16), 3]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Three tokens a tile, seven a block."""
    monkeypatch.setattr(tiled_loss, "TILE", 3 * VOCABULARY)
    monkeypatch.setattr(tiled_loss, "BLOCK", 7 * VOCABULARY)


def case(dtype=torch.float64, bias=True, softcap=None, temperature=1.0):
    random = torch.Generator().manual_seed(1)
    hidden, weight, shift = (
        torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)
        for shape in ((TOKENS, WIDTH), (PADDED, WIDTH), (PADDED,))
    )
    head = Head(weight, shift if bias else None, VOCABULARY, softcap, temperature)
    return hidden, head, dataclasses.replace(head, swap=SWAP)


def permuted(logits):
    return logits[..., ORDER]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [{}, {"bias": False}, {"softcap": 2.0}, {"temperature": 0.7}])
def test_logits(shape, dtype, monkeypatch):
    """Bit for bit: plain, without the mean row, laid out by oneDNN, in float32 as on a GPU."""
    hidden, head, swapped = case(dtype, **shape)
    assert (swapped.mean is not None) == (dtype == torch.bfloat16 and "softcap" not in shape)
    pairs = [(head, swapped)]
    if possible(head.weight):
        pairs.append((packed_head(head), packed_head(swapped)))
        assert all(x.product is not None for x in pairs[-1])
    for plain, other in pairs:
        assert torch.equal(other.logits(hidden), permuted(plain.logits(hidden)))
        assert torch.equal(other.cheapest(hidden), permuted(plain.cheapest(hidden)))
        assert other.cheapest(hidden).dtype == plain.cheapest(hidden).dtype
    monkeypatch.setattr(logit_product, "_has_wide", lambda device: True)
    monkeypatch.setattr(logit_product, "_mm", lambda a, b: a.float() @ b.float())
    assert torch.equal(swapped.logits(hidden), permuted(head.logits(hidden)))


def test_a_single_token_and_a_batch_of_positions():
    hidden, head, swapped = case()
    assert torch.equal(swapped.logits(hidden[0]), permuted(head.logits(hidden[0])))
    whole = hidden[:22].view(2, 11, WIDTH)
    assert torch.equal(swapped.logits(whole), permuted(head.logits(whole)))


def test_values_and_a_teachers_tiles():
    hidden, head, swapped = case()
    _, other, _ = case(temperature=0.5)
    student, given = other.logits(hidden), logits_by_tile(hidden, swapped)
    expected = objectives.reverse_kl(student, permuted(head.logits(hidden)))
    found = tiled_loss.values(lambda x, part: objectives.reverse_kl(x, given(part)), hidden, other)
    assert_close(found, expected, atol=1e-12, rtol=0)
    theirs = tiled_loss.values(lambda x, part: x.log_softmax(-1), hidden, swapped)
    assert_close(theirs, permuted(head.logits(hidden).log_softmax(-1)), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("softcap", "compiled"), [(None, None), (2.0, None), (None, False), (2.0, True)])
def test_a_loss_and_its_gradients(softcap, compiled):
    """Of hidden states, matrix and bias, against whole permuted logits and autograd."""
    hidden, plain, swapped = case(softcap=softcap, temperature=0.7)
    tokens = (torch.arange(TOKENS) * 5) % VOCABULARY
    found, right = (
        [x.clone().requires_grad_() for x in (hidden, plain.weight, plain.bias)] for _ in range(2)
    )

    def nll(logits, at):
        return -logits.log_softmax(-1).gather(-1, at[:, None])[:, 0]

    function = lambda logits, part: nll(logits, tokens[part])  # noqa: E731
    if compiled is not None:
        function = Compilable(
            lambda logits, at: ({"nll": nll(logits, at).sum()}, {}),
            lambda part: (tokens[part],),
            lambda terms: None,
            compiled,
        )
    total = tiled_loss.loss(function, found[0], dataclasses.replace(swapped, weight=found[1], bias=found[2]))
    whole = dataclasses.replace(plain, weight=right[1], bias=right[2])
    expected = nll(permuted(whole.logits(right[0])), tokens).sum()
    assert_close(total, expected, atol=1e-10, rtol=1e-10)
    assert (total - nll(plain.logits(hidden), tokens).sum()).abs() > 0.1
    total.backward()
    expected.backward()
    for a, b in zip(found, right, strict=True):
        assert_close(a.grad, b.grad, atol=1e-10, rtol=1e-10)


def test_a_models_head_and_tokens_that_are_cut_off():
    model, hidden = make("llama", 1), torch.randn(4, 16)
    with torch.no_grad():
        order = [0, 9, *range(2, 9), 1, 10]
        found = head_of(model, 11, 0.7, (1, 9)).logits(hidden)
        assert torch.equal(found, head_of(model, 11, 0.7).logits(hidden)[:, order])
    with pytest.raises(ValueError, match="11"):
        head_of(model, 11, swap=(0, 11))
