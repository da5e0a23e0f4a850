"""launch.attention: another implementation of attention, the same update."""

import pytest
import torch
from onpolicy_case import COUNT, pair, rollouts, settings, task
from tiny_models import FAMILIES, make
from torch.testing import assert_close

from minillm.config import Launch
from minillm.engine import Engine
from minillm.errors import UserError
from minillm.models import use_attention
from minillm.rollout_losses import micro_batches
from minillm.world import start


def updated(folder, attention, family):
    """Weights after one update on samples of different lengths, drawn by models whose attention is computed as `attention` says."""
    chosen = settings("released", warmup=0, lr=1e-2)
    student, teacher = (model.float() for model in pair(family))
    engine = Engine(student, chosen, Launch(micro_batch=2 * COUNT, attention=attention), start(0), "fp32", folder, 1)
    teacher = engine.frozen(teacher)
    assert {model.config._attn_implementation for model in (engine.model, teacher)} == {attention.replace("auto", "sdpa")}
    for group in engine.engine.optimizer.param_groups:
        group["eps"] = 1.0  # a gradient twice as large then moves a weight by twice as much
    before = [p.detach().clone() for p in engine.model.parameters()]
    made = rollouts(engine.model, teacher, chosen)
    engine.update(*micro_batches(engine, task(teacher, chosen), made, list(range(COUNT))))
    return [after.detach() - b for after, b in zip(engine.model.parameters(), before, strict=True)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_student_and_teacher_get_it_and_the_update_stays(tmp_path, family):
    auto, eager = (updated(tmp_path / name, name, family) for name in ("auto", "eager"))
    assert max(change.abs().max() for change in auto) > 1e-5
    assert_close(eager, auto, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_sees_padding(family):
    model = make(family, 1)
    tokens = torch.arange(12).view(2, 6) % 11
    attention = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    places = {"attention_mask": attention, "position_ids": (attention.cumsum(-1) - 1).clamp(min=0)}
    expected = model(tokens, **places).logits[attention.bool()]
    use_attention(model, "eager")
    assert_close(model(tokens, **places).logits[attention.bool()], expected)


def test_a_model_that_does_not_have_it_is_refused(monkeypatch):
    model = make("llama", 1)
    with pytest.raises(UserError, match='launch.attention: .*"nothing"'):
        use_attention(model, "nothing")
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(UserError, match=r"launch\.attention: LlamaForCausalLM cannot be set to 'eager'; leave it at auto"):
        use_attention(model, "eager")
