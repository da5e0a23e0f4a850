"""Tiles of tokens against whole logits: values and gradients of every objective.

Output matrices are tied, untied, biased and capped.
"""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from onpolicy_case import EOS, Prompts, gradient, pair, rollouts, settings, task
from tiny_models import FAMILIES, make
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from minillm import objectives
from minillm.config.launch import Launch
from minillm.data.batching import collate
from minillm.errors import UserError
from minillm.models import tiled_loss
from minillm.models.checks import check_head
from minillm.models.head import (
    logits_by_tile,
    response_logits,
    response_loss,
    response_tokens,
    token_logprobs,
)
from minillm.models.tiled_loss import Head
from minillm.token_sets import TOP_K, on_set
from minillm.training import rollouts as rollouts_module

TOKENS, WIDTH, VOCABULARY, PADDED = 23, 6, 17, 20

DIVERGENCES = {
    "forward_kl": objectives.forward_kl,
    "reverse_kl": objectives.reverse_kl,
    "jensen_shannon": partial(objectives.jensen_shannon, beta=0.3),
    "skew_forward_kl": objectives.skew_forward_kl,
    "skew_reverse_kl": objectives.skew_reverse_kl,
    "total_variation": objectives.total_variation,
    "alpha_beta": objectives.alpha_beta,
    "token_wise_kl": objectives.token_wise_kl,
    "squared_log_ratio": objectives.squared_log_ratio,
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Three tokens a tile, seven a block: three whole blocks and a rest."""
    monkeypatch.setattr(tiled_loss, "TILE", 3 * VOCABULARY)
    monkeypatch.setattr(tiled_loss, "BLOCK", 7 * VOCABULARY)


def case(dtype=torch.float64, bias=False, softcap=None, temperature=1.0, seed=0):
    """(hidden states, head) of a student and of a wider teacher."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=random, dtype=torch.float64)).to(dtype)

    made = []
    for width in (WIDTH, WIDTH + 3):
        hidden, weight = normal(TOKENS, width), normal(PADDED, width)
        made.append(
            (hidden, Head(weight, normal(PADDED) if bias else None, VOCABULARY, softcap, temperature))
        )
    return made


def trained(hidden, head):
    """Leaves of what is trained: hidden states, weight and, where there is one, bias."""
    leaves = [hidden.clone().requires_grad_(), head.weight.clone().requires_grad_()]
    if head.bias is not None:
        leaves.append(head.bias.clone().requires_grad_())
    return leaves, dataclasses.replace(
        head, weight=leaves[1], bias=leaves[2] if head.bias is not None else None
    )


def both_ways(function, student, teacher):
    """(value, gradients) tile by tile, and of the whole logits at once."""
    found = []
    theirs = logits_by_tile(*teacher)
    for tiled in (True, False):
        leaves, head = trained(*student)
        if tiled:
            total = tiled_loss.loss(lambda logits, part: function(logits, theirs(part)), leaves[0], head)
        else:
            total = function(head.logits(leaves[0]), theirs(slice(0, TOKENS))).sum()
        (3.0 * total).backward()
        found.append((total.detach(), [leaf.grad for leaf in leaves]))
    return found


HEADS = {
    "plain": {},
    "biased": {"bias": True},
    "capped": {"softcap": 2.0},
    "all": {"bias": True, "softcap": 3.0, "temperature": 1.7},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_exactly(name, head):
    (value, derivatives), (expected, expected_derivatives) = both_ways(
        DIVERGENCES[name], *case(**HEADS[head])
    )
    assert_close(value, expected, atol=1e-10, rtol=1e-10)
    assert all(derivative.abs().max() > 1e-3 for derivative in derivatives), "the loss moves everything"
    for derivative, other in zip(derivatives, expected_derivatives, strict=True):
        assert_close(derivative, other, atol=1e-10, rtol=1e-10)
    assert (derivatives[1][VOCABULARY:] == 0).all(), "padding of the embedding is never used"


@pytest.mark.parametrize("tokens", TOP_K)
def test_every_set_exactly(tokens):
    def function(logits, theirs):
        return objectives.reverse_kl(*on_set(logits, theirs, tokens, 4, renormalise=True), normalised=True)

    (value, derivatives), (expected, expected_derivatives) = both_ways(function, *case(**HEADS["all"]))
    assert_close(value, expected, atol=1e-10, rtol=1e-10)
    for derivative, other in zip(derivatives, expected_derivatives, strict=True):
        assert_close(derivative, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_float32_is_no_worse_than_whole_logits(name):
    """Errors of gradients against float64 on the same numbers, over 20 draws.

    The largest is at most twice the untiled path's, all together are alike.

    (The largest of one draw, of some 100 numbers, is twice as large in one order of summation as in another.)
    """
    errors = {way: ([], []) for way in ("tiled", "whole")}  # of hidden states and of weights
    for seed in range(20):
        given = case(torch.float32, seed=seed)
        same = [
            (hidden.double(), dataclasses.replace(head, weight=head.weight.double()))
            for hidden, head in given
        ]
        (_, exact), _ = both_ways(DIVERGENCES[name], *same)
        for kept, (_, derivatives) in zip(errors.values(), both_ways(DIVERGENCES[name], *given), strict=True):
            for part, derivative, reference in zip(kept, derivatives, exact, strict=True):
                part.append((derivative.double() - reference).abs() / reference.abs().max())
    for tiled, whole in zip(*(map(torch.stack, kept) for kept in errors.values()), strict=True):
        assert 0 < tiled.max() <= 2 * whole.max()
        assert tiled.square().mean().sqrt() <= 1.25 * whole.square().mean().sqrt()


def test_log_probabilities_and_entropy():
    (hidden, head), _ = case(bias=True)
    tokens = torch.arange(TOKENS) % VOCABULARY
    logs = head.logits(hidden).log_softmax(-1)

    def both(logits, part):
        log = logits.log_softmax(-1)
        return torch.stack([token_logprobs(logits, tokens[part]), -(log.exp() * log).sum(-1)], 1)

    found = tiled_loss.values(both, hidden, head)
    assert_close(found[:, 0], logs.gather(1, tokens[:, None])[:, 0], atol=1e-12, rtol=0)
    assert_close(found[:, 1], torch.distributions.Categorical(logits=logs).entropy(), atol=1e-12, rtol=0)


def test_no_tokens():
    (hidden, head), _ = case()
    leaf = hidden[:0].clone().requires_grad_()
    total = tiled_loss.loss(lambda logits, _: logits.sum(-1), leaf, head)
    total.backward()
    assert total == 0 and leaf.grad.shape == (0, WIDTH)


def test_tiles():
    assert list(tiled_loss.tiles(10, 5, 20)) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(tiled_loss.tiles(10, 50, 20, 8)) == [slice(8, 9), slice(9, 10)], "a token at least"
    assert list(tiled_loss.tiles(0, 5, 20)) == []


@pytest.mark.parametrize("tokens", ["all", *TOP_K])
def test_memory_does_not_grow_with_the_tokens(monkeypatch, tokens):
    """No tensor that the loss makes has more elements than a block or the matrix."""
    monkeypatch.setattr(tiled_loss, "TILE", 200)
    monkeypatch.setattr(tiled_loss, "BLOCK", 400)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    def function(logits, _):
        theirs = logits.detach() * 2
        if tokens == "all":
            return objectives.forward_kl(logits, theirs)
        # As many columns as the vocabulary has.
        return objectives.forward_kl(*on_set(logits, theirs, tokens, 50), normalised=True)

    hidden, weight = torch.randn(1000, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    with Watch():
        tiled_loss.loss(
            function,
            hidden,
            Head(weight, None, 50),
        ).backward()
    assert largest == hidden.numel() and hidden.grad.abs().max() > 1e-3


# --- models
def capped(seed):
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=13,
            num_key_value_heads=1,
            final_logit_softcapping=1.5,
            initializer_range=0.5,
            pad_token_id=0,
            **shape,
        )
    ).eval()


def biased(seed):
    torch.manual_seed(seed)
    made = GPTJForCausalLM(
        GPTJConfig(
            vocab_size=13, n_positions=64, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, initializer_range=0.5
        )
    )
    torch.nn.init.normal_(made.lm_head.bias)
    return made.eval()


MAKERS = {name: partial(make, name) for name in FAMILIES} | {"gemma2": capped, "gptj": biased}


@pytest.mark.parametrize("family", MAKERS)
def test_families(family, tmp_path):
    """Their own logits at the valid tokens, with padding on the left, and the gradient of a loss on these."""
    model = MAKERS[family](3)
    close = {"atol": 1e-5, "rtol": 1e-4}  # of Gemma 2, whose attention has no float64: padded rows become NaN
    if family != "gemma2":
        model, close = model.double(), {"atol": 1e-10, "rtol": 1e-10}
    check_head(model, tmp_path)
    batch = collate([(np.array([3, 4, 5]), np.array([1, 2, 0])), (np.array([7]), np.array([5, 0]))], 0)
    whole = model(input_ids=batch.tokens, attention_mask=batch.attention, position_ids=batch.positions).logits
    valid = batch.mask.bool()
    expected = whole[:, batch.start - 1 : -1][valid][:, :11]
    assert_close(response_logits(model, batch, 11), expected, **close)
    tokens = response_tokens(batch)
    losses = [
        response_loss(model, batch, 11, lambda logits, part: -token_logprobs(logits, tokens[part])),
        -token_logprobs(expected, tokens).sum(),
    ]
    found = []
    for loss in losses:
        model.zero_grad()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert_close(losses[0], losses[1], **close)
    assert_close(found[0], found[1], **close)


def test_a_family_that_scales_its_logits_is_refused(tmp_path):
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    model = GraniteForCausalLM(GraniteConfig(vocab_size=13, logits_scaling=4.0, **shape)).eval()
    with pytest.raises(UserError, match="Granite.*does more to its logits"):
        check_head(model, tmp_path)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_temperature_divides_the_logits_of_both(preset):
    """The loss at a temperature is that of models whose output matrices are divided by it."""
    chosen = settings(preset, temperature=0.7, lm_coef=0.0)
    student, teacher = pair()
    made = rollouts(student, teacher, chosen)
    found, derivatives = gradient(student, made, task(teacher, chosen))
    for model in (student, teacher):
        model.lm_head.weight.data /= 0.7
    expected, others = gradient(student, made, task(teacher, settings(preset, lm_coef=0.0)))
    assert found == pytest.approx(expected, abs=1e-9)
    derivatives["lm_head.weight"] *= 0.7
    assert_close(others, derivatives, atol=1e-9, rtol=1e-9)


# --- the teacher's hidden states, kept from the sampling
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_kept_hidden_states_give_the_same_loss(preset):
    """Those recorded while sampling, and those of one pass over responses that were not sampled.

    Both are compared with passes of their own.
    """
    chosen = settings(preset)
    student, teacher = pair()
    made, work = rollouts(student, teacher, chosen), task(teacher, chosen)
    expected, derivatives = gradient(student, made, work, Launch(micro_batch=2))
    kept = kept_of(student, teacher, chosen)
    found, others = gradient(
        student, dataclasses.replace(made, teacher_hidden=kept), work, Launch(micro_batch=2)
    )
    assert found == pytest.approx(expected, abs=1e-9)
    assert_close(others, derivatives, atol=1e-9, rtol=1e-9)


def kept_of(student, teacher, chosen):
    """Of each row: what the sampling recorded for the even ones, the odd ones as if they were not sampled."""
    from onpolicy_case import PROMPTS, VOCABULARY, OneProcess

    from minillm.config.sections import Sampling
    from minillm.sampling.sample import Mixture, sample

    found = sample(
        student,
        PROMPTS,
        Prompts.ids,
        Sampling(max_tokens=chosen.max_tokens),
        seed=1,
        step=2,
        ends=[EOS],
        pad=EOS,
        vocabulary=VOCABULARY,
        mixture=Mixture(teacher, chosen.alpha),
        record=True,
    )
    entries = [
        rollouts_module.Entry(i, r.tokens, r.finished, r.record if i % 2 == 0 else None)
        for i, r in enumerate(found)
    ]
    engine = OneProcess(student, Launch(eval_batch=3))
    return rollouts_module.teacher_hidden(engine, teacher, Prompts().prompt, entries, EOS)


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_a_gradient_kept_in_float32_is_scaled_as_a_whole(monkeypatch, rows):
    """Some rows at a time, to the run's precision: what a second float32 matrix would give."""
    monkeypatch.setattr(tiled_loss, "TILE", rows * 5)
    gradient = torch.randn(23, 5, generator=torch.Generator().manual_seed(2))
    factor = torch.tensor(0.37)
    found = tiled_loss._scaled(gradient, factor, torch.bfloat16)
    assert found.dtype == torch.bfloat16 and torch.equal(found, (gradient * factor).to(torch.bfloat16))
    assert torch.equal(
        tiled_loss._scaled(gradient[:, 0], factor, torch.bfloat16),
        (gradient[:, 0] * factor).to(torch.bfloat16),
    )


@pytest.mark.parametrize(("tile", "block"), [(10**9, 10**9), (47 * 3, 47 * 9), (47, 47)])
def test_half_precision_in_blocks(monkeypatch, tile, block):
    """In bf16 the gradient of the matrix is added up in float32, some rows at a time.

    It is as near to float64 as from one block.
    """
    hidden, weight, teacher = (
        torch.randn(*size, generator=torch.Generator().manual_seed(5))
        for size in ((64, 16), (53, 16), (64, 47))
    )

    def gradients(dtype):
        leaves = [values.bfloat16().to(dtype).requires_grad_() for values in (hidden, weight)]
        head = Head(leaves[1], None, 47)
        total = tiled_loss.loss(
            lambda logits, part: objectives.forward_kl(logits, teacher[part].to(logits.dtype)),
            leaves[0],
            head,
        )
        (0.1 * total).backward()
        return [leaf.grad.double() for leaf in leaves]

    exact = gradients(torch.float64)
    monkeypatch.setattr(tiled_loss, "TILE", tile)
    monkeypatch.setattr(tiled_loss, "BLOCK", block)
    for found, expected in zip(gradients(torch.bfloat16), exact, strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()
