"""launch.attention: another implementation of attention, the same update."""

import pytest
import torch
from onpolicy_case import COUNT, engine_of, rollouts, task
from tiny_models import FAMILIES, make
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.errors import UserError
from minillm.models.loading import attention
from minillm.training.rollout_losses import micro_batches


def updated(folder, name, family):
    """(change of the weights by one update, the implementations that its forward passes used).

    The samples are of different lengths.
    """
    engine, teacher, chosen = engine_of(folder, family, Launch(micro_batch=2 * COUNT, attention=name))
    used: list[str] = []
    for model in (engine.model, teacher):
        model.base_model.register_forward_pre_hook(
            lambda model, _: used.append(model.config._attn_implementation)
        )
    before = [p.detach().clone() for p in engine.model.parameters()]
    made = rollouts(engine.model, teacher, chosen)
    assert set(used) == {"sdpa"}, "sampling is left as it is"
    used.clear()
    engine.update(*micro_batches(engine, task(teacher, chosen), made, list(range(COUNT))))
    assert engine.model.config._attn_implementation == "sdpa"
    return [after.detach() - b for after, b in zip(engine.model.parameters(), before, strict=True)], set(used)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_update_stays(tmp_path, family):
    auto, usual = updated(tmp_path / "auto", "auto", family)
    eager, used = updated(tmp_path / "eager", "eager", family)
    assert (usual, used) == ({"sdpa"}, {"eager"})
    assert max(change.abs().max() for change in auto) > 1e-5
    assert_close(eager, auto, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_sees_padding(family):
    model = make(family, 1)
    tokens = torch.arange(12).view(2, 6) % 11
    valid = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    places = {"attention_mask": valid, "position_ids": (valid.cumsum(-1) - 1).clamp(min=0)}
    expected = model(tokens, **places).logits[valid.bool()]
    with attention([model], "eager"):
        assert_close(model(tokens, **places).logits[valid.bool()], expected)


def test_a_model_that_does_not_have_it_is_refused(monkeypatch):
    model = make("llama", 1)
    with pytest.raises(UserError, match='launch.attention: .*"nothing"'), attention([model], "nothing"):
        pass
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    refused = pytest.raises(
        UserError, match="launch.attention: LlamaForCausalLM cannot be set to 'eager'; leave it at auto"
    )
    with refused, attention([model], "eager"):
        pass
