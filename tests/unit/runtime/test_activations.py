"""Activation checkpointing: each layer runs twice in a step of training, and the gradient stays.

No dropout comes with it.
"""

import dataclasses

import pytest
import torch
from onpolicy_case import COUNT, Texts, pair, rollouts, settings, task
from tiny_models import FAMILIES, make
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.runtime.engine import Engine, without_dropout
from minillm.runtime.processes import start
from minillm.training.rollout_losses import micro_batches


def updated(tmp_path, checkpointing, family="llama"):
    """(forward calls of the first layer in one update, weights after it) of the on-policy stage.

    That stage trains without dropout.
    """
    chosen = settings("released", warmup=0, lr=1e-2)
    student, teacher = pair(family)
    student, teacher = student.float(), teacher.float()
    made = rollouts(student, teacher, chosen)
    made = dataclasses.replace(made, **{k: v.float() for k, v in vars(made).items() if hasattr(v, "float")})
    launch = Launch(micro_batch=2 * COUNT, gradient_checkpointing=checkpointing)
    engine = Engine(student, chosen, launch, start(0), "fp32", tmp_path / str(checkpointing), 1)
    calls = []
    layer = (student.model.layers if family == "llama" else student.transformer.h)[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    engine.update(*micro_batches(engine, task(teacher, chosen), made, list(range(COUNT))))
    assert len(Texts()) == COUNT
    return len(calls), {name: p.detach().clone() for name, p in engine.model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_are_computed_again_and_nothing_else_changes(tmp_path, family):
    """Samples and plain text are one pass; GPT-2's dropout of 0.1 would show in the weights."""
    plain, weights = updated(tmp_path, False, family)
    again, others = updated(tmp_path, True, family)
    assert (plain, again) == (1, 2)
    assert_close(others, weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_dropout_is_left(family):
    model = make(family, 1)
    without_dropout(model)
    batch = {"input_ids": torch.arange(12).view(2, 6) % 11}
    expected = model.eval()(**batch).logits
    assert_close(model.train()(**batch).logits, expected)
