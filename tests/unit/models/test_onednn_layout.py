"""Weights laid out beforehand: the same products, only while asked for, and only of what can be laid out."""

import pytest
import torch
from tiny_models import FAMILIES, make
from torch import nn
from torch.nn import functional

from minillm.models.head import head_of
from minillm.models.onednn_layout import packed, packed_head, possible, product

TOKENS = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]])


def layers_with_own_forward(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("rows", [(0,), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product(dtype, rows):
    weight, bias, x = (
        torch.randn(70, 33).to(dtype),
        torch.randn(70).to(dtype),
        torch.randn(*rows, 33).to(dtype),
    )
    if not possible(weight):
        pytest.skip(f"oneDNN has no products in {dtype} on this processor")
    exact = functional.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(
        product(weight, bias)(x).double(), exact, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0.01
    )


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_is_the_same_inside_and_untouched_after(kind):
    model = make(kind, 1)
    with torch.no_grad():
        plain = model(TOKENS).logits
        with packed(
            [model, model]
        ):  # a student that samples by itself is there twice where it is its own teacher
            assert layers_with_own_forward(model)
            torch.testing.assert_close(model(TOKENS).logits, plain, atol=1e-5, rtol=1e-4)
        assert not layers_with_own_forward(model)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        changed = model(TOKENS).logits
        with packed([model]):
            torch.testing.assert_close(model(TOKENS).logits, changed, atol=1e-5, rtol=1e-4)
    assert (changed - plain).abs().max() > 0.1


def test_an_error_inside_leaves_nothing_behind():
    model = make("gpt2", 1)
    with pytest.raises(KeyError), packed([model]):
        raise KeyError
    assert not layers_with_own_forward(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_head(kind):
    model, hidden = make(kind, 1), torch.randn(4, 16)
    head = head_of(model, 11, 0.7)
    with torch.no_grad():
        laid_out = packed_head(head)
        assert laid_out.product is not None
        torch.testing.assert_close(laid_out.logits(hidden), head.logits(hidden), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_laid_out_stays_as_it_is():
    wide, spread = make("llama", 1).double(), nn.Linear(4, 4)
    spread.weight.data = torch.empty(0)
    assert not possible(wide.lm_head.weight) and not possible(spread.weight)
    assert not possible(torch.empty(4, 4, device="meta"))
    head = head_of(wide, 11)
    assert packed_head(head) is head
    with packed([wide]):
        assert not layers_with_own_forward(wide)
