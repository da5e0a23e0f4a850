"""What `minillm plan` says of models that are trained by an adapter."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_fits_jobs import small
from torch.utils.flop_counter import FlopCounterMode

from minillm.config.adapter import Adapter
from minillm.config.launch import Launch
from minillm.errors import UserError
from minillm.fits import flops, passes
from minillm.fits.hours import disk, state_bytes
from minillm.fits.jobs import Key, Planner
from minillm.fits.memory import least, memory
from minillm.fits.passes import How, Loss, Rows
from minillm.fits.sizes import adapted, build, size_of, text_of
from minillm.fits.work import Part
from minillm.models.adapters import add_adapter
from minillm.plan import configuration

TWO = Adapter(rank=2)
LLAMA = text_of(
    {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "vocab_size": 50,
    }
)  # fmt: skip


@pytest.mark.parametrize("shape", [small(n_layer=3).shape, LLAMA])
def test_sizes_are_those_of_a_model_with_an_adapter(shape: str) -> None:
    model = build(shape)
    add_adapter(model, TWO, 1)
    plain, found = size_of(shape), size_of(adapted(shape, TWO))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.parameters == sum(p.numel() for p in model.parameters()) == plain.parameters + trained
    assert found.trained == found.decaying == trained
    assert (found.matrices, found.frozen) == (plain.matrices + trained, plain.matrices)
    assert (found.last, found.cache, found.layers) == (plain.last, plain.cache, plain.layers)
    assert (plain.trained, plain.frozen) == (plain.parameters, 0)
    assert adapted(shape, None) == shape


@pytest.mark.parametrize("shape", [small(n_layer=3).shape, LLAMA])
def test_operations_of_an_update_are_those_that_torch_counts(shape: str) -> None:
    """Without attention, whose products the counter sees or not; in the first block fewer gradients."""
    size = size_of(adapted(shape, TWO))
    model = build(size.shape)
    model.set_attn_implementation("eager")
    tokens = torch.randint(0, 50, (2, 20))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.sum().backward()
    part = Part(2, 0, 20, 20, 20, Loss())
    attention = 3 * 2 * flops.attention(size, 20, 20)
    ours = flops.update(part, size, False) - 3.5 * 2 * flops.attention(size, 20, 20)
    # Nothing is asked of the inputs of the first block's first layers.
    first = 2.0 * 40 * size.frozen / size.layers
    assert ours - first <= counter.get_total_flops() - attention <= ours


def test_an_update_keeps_no_gradient_of_the_output_matrix() -> None:
    shape = small(vocab_size=3000, n_embd=32, n_head=2).shape
    # Two blocks of tiles: the gradient of the first is held while the second is computed.
    rows, how = Rows(1000, 31, 30), How(torch.float32, "cpu")
    whole = passes.update(size_of(shape), rows, how, Loss())
    part = passes.update(size_of(adapted(shape, TWO)), rows, how, Loss())
    assert whole.tiles - part.tiles == 3000 * 32 * 4


def test_an_unknown_target_is_refused_by_the_plan() -> None:
    with pytest.raises(UserError, match="'q_proj' is not .* linear layer"):
        size_of(adapted(small().shape, Adapter(targets=("q_proj",))))


def planner(teacher: Any = None, student: Any = None) -> Planner:
    config = configuration([])
    models = dict(config.models)
    for name, adapter in (("gpt2-xl", teacher), ("gpt2", student)):
        models[name] = dataclasses.replace(models[name], adapter=adapter)
    # Another model on the student's base.
    models["gpt2-again"] = dataclasses.replace(models["gpt2"], adapter=Adapter(rank=4), size="again")
    return Planner(
        dataclasses.replace(
            config, models=models, shapes=config.shapes | {"gpt2-again": config.shapes["gpt2"]}
        )
    )


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_gradients_and_optimizer_state_are_of_the_adapter(zero: int) -> None:
    plan, whole = planner(student=TWO), planner()
    key = Key("sft", "sft", "gpt2")
    launch = Launch(zero=zero, processes=2, micro_batch=4)
    work, before = plan.work(key, launch), whole.work(key, launch)
    trained = work.student.trained
    assert 0 < trained < before.student.trained / 100
    found = memory(work)
    share = trained // 2 if zero else trained
    assert found.optimizer == 12 * share
    assert found.gradients == 2 * (share if zero >= 2 else trained)
    weights = 2 * work.student.parameters
    assert found.weights == (weights // 2 if zero == 3 else weights)
    assert state_bytes(work) == trained * (12 if zero else 16)
    assert zero == 3 or least(work) < least(before)
    assert disk(work)[1] < disk(before)[1] / 50
    # What samples and is evaluated afterwards is merged.
    assert plan.work(Key("generate", "generate", "gpt2", test="dolly")).student == before.student


def test_one_base_is_counted_once() -> None:
    plan = planner(student=TWO)
    launch = Launch(zero=1)
    of_base = plan.size("gpt2").parameters
    for key, models in (
        (Key("kd", "kd", "gpt2", "gpt2-xl"), 0),
        (Key("kd", "kd", "gpt2", "gpt2-again"), 1),
        (Key("minillm", "minillm", "gpt2", "gpt2-again"), 1),
    ):
        work = plan.work(key, launch)
        assert work.shared == models * of_base
        number = sum(model.parameters for model in work.frozen) - work.shared
        assert memory(work).teacher == 2 * number
        assert plan.work(key, Launch(zero=3)).shared == 0
        assert plan.work(key, Launch(zero=1, shard_teacher=True, processes=2)).shared == 0
    teacher = plan.work(Key("kd", "kd", "gpt2", "gpt2-again"), launch).frozen[0]
    assert teacher.parameters - of_base == size_of(adapted(plan.size("gpt2").shape, Adapter(rank=4))).trained


def test_the_initial_student_shares_the_base() -> None:
    raw = planner(student=TWO).config
    stages = dataclasses.replace(raw.stages, minillm={**raw.stages.minillm, "init_kl": 0.1})
    plan = Planner(dataclasses.replace(raw, stages=stages))
    work = plan.work(Key("minillm", "minillm", "gpt2", "gpt2-xl"), Launch(zero=1))
    assert work.frozen[1] == work.student and work.shared == plan.size("gpt2").parameters
