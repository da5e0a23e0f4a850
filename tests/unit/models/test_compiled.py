"""launch.compile: the losses compiled by torch are the losses."""

from __future__ import annotations

import pytest
import torch
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, Prompts, gradient, pair, rollouts, settings, task

from minillm.config.launch import Launch
from minillm.data.batching import collate
from minillm.models import compiling, tiled_loss
from minillm.models.head import token_logprobs
from minillm.training.sample_loss import SampleLoss
from minillm.training.supervised_loss import TokenLoss, example_loss

needs_compiler = pytest.mark.skipif(
    compiling.lacking() is not None, reason=f"no {compiling.lacking()} on this machine"
)


@pytest.fixture(autouse=True)
def tiles_of_three_tokens(monkeypatch):
    """So that there are whole tiles, which are compiled, and the rest, which is not."""
    monkeypatch.setattr(tiled_loss, "TILE", 3 * VOCABULARY)
    compiled = tiled_loss._compiled
    compiled.cache_clear()
    yield
    compiled.cache_clear()


def compiled_tiles(monkeypatch) -> list[int]:
    """Rows of each tile that goes through compiled code, as it goes."""
    rows, plain = [], tiled_loss._compiled

    def watched(*key):
        run = plain(*key)
        return lambda product, *given: (rows.append(len(product)), run(product, *given))[1]

    monkeypatch.setattr(tiled_loss, "_compiled", watched)
    return rows


def same_but_for_rounding(compiled, plain):
    """Of each gradient, to a hundred thousandth of its largest number.

    float32 knows 6e-8 of it, and a processor's products some ten times that.
    """
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(
            compiled[name],
            value,
            rtol=0,
            atol=1e-5 * value.abs().max().item(),
            msg=lambda text, name=name: f"{name}: {text}",
        )


@needs_compiler
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_an_on_policy_update(preset, monkeypatch):
    """Loss and gradient of samples at another temperature, and of plain text."""
    chosen = settings(preset, temperature=0.8)
    student, teacher = (model.float() for model in pair())
    made = rollouts(student, teacher, chosen)
    loss, plain = gradient(student, made, task(teacher, chosen), Launch(micro_batch=2 * COUNT))
    rows = compiled_tiles(monkeypatch)
    again, compiled = gradient(
        student, made, task(teacher, chosen), Launch(micro_batch=2 * COUNT, compile=True)
    )
    assert set(rows) == {3} and len(rows) > 10
    assert again == pytest.approx(loss, rel=1e-5)
    same_but_for_rounding(compiled, plain)


@needs_compiler
@pytest.mark.parametrize("kd_ratio", [0.0, 0.5])
def test_a_supervised_update(kd_ratio, monkeypatch):
    student, teacher = (model.float() for model in pair("gpt2"))
    batch = collate([(PROMPTS[i], Prompts().response(i)) for i in range(COUNT)], EOS)
    rows, found = compiled_tiles(monkeypatch), []
    for compiled in (False, True):
        student.zero_grad()
        loss = example_loss(student, batch, VOCABULARY, 24, teacher, kd_ratio, compiled=compiled)
        loss.backward()
        found.append((loss.item(), {name: p.grad.clone() for name, p in student.named_parameters()}))
        assert len(rows) == (8 if compiled else 0)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    same_but_for_rounding(found[1][1], found[0][1])


def test_equal_settings_share_what_was_compiled():
    """A function of each micro-batch would be compiled for each micro-batch."""
    first, second, other = (SampleLoss(settings("paper", **more)) for more in ({}, {}, {"clip": 0.3}))
    assert first == second and hash(first) == hash(second) and first != other


@pytest.mark.parametrize("missing", ["no-such-compiler", "Python.h"])
def test_without_a_compiler_or_headers(missing, monkeypatch):
    """The same loss, and a warning that names what is not there."""
    if missing == "Python.h":
        monkeypatch.setenv("CXX", "true")  # a program that is everywhere
        monkeypatch.setattr("sysconfig.get_path", lambda _: "nowhere")
    else:
        monkeypatch.setenv("CXX", missing)
    with pytest.warns(UserWarning, match=f"no .*{missing}"):
        run = tiled_loss._compiled(TokenLoss(0.0), None, 1.0, None)
    logits, tokens = torch.randn(3, 5), torch.tensor([0, 4, 2])
    assert run(logits, tokens, None)[0]["loss"] == -token_logprobs(logits, tokens).sum()
