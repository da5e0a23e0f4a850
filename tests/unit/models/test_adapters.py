"""Adapters put into models: which weights they have, their gradients, their files, and merging them.

Gradients are compared with float64 autograd of a model whose weights are W + alpha / rank B A, and with the
chain rule from its matrices to A and B: nothing of peft.
"""

import json
import sys

import numpy as np
import pytest
import torch
from onpolicy_case import EOS, PROMPTS, VOCABULARY, Prompts, gradient, pair, rollouts, settings, task
from tiny_models import make
from torch.testing import assert_close

from minillm.config.adapter import Adapter
from minillm.data.batching import collate
from minillm.errors import UserError
from minillm.models import adapters
from minillm.models.adapters import add_adapter, load_adapter, merged, save_adapter, targets_of, twin
from minillm.training.supervised_loss import example_loss

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])
TWO = Adapter(rank=2, alpha=3.0)
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


def adapted(family, seed=1, adapter=TWO, dtype=torch.float64):
    """A model with an adapter that changes its logits."""
    model = make(family, seed).to(dtype)
    add_adapter(model, adapter, seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in adapters.adapter_weights(model).values():
        weight.data = (0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)).to(dtype)
    return model


def matrices(model):
    """Name of a layer -> (its frozen weight, A, B), Conv1D's weight transposed as torch's linear layers."""
    held = dict(model.named_parameters())
    return {
        name.removesuffix(".lora_A.default.weight"): (
            held[name.replace("lora_A.default", "base_layer")],
            held[name],
            held[name.replace("lora_A", "lora_B")],
        )
        for name in held
        if "lora_A" in name
    }


def written_out(family, model, seed=1, scale=TWO.alpha / TWO.rank):
    """The plain model of the same family with W + scale B A in the place of each target's W."""
    plain = make(family, seed).double()
    for name, (_, a, b) in matrices(model).items():
        change = scale * torch.einsum("or,ri->oi", b.detach(), a.detach())
        weight = plain.get_submodule(name).weight
        weight.data += change.T if family == "gpt2" else change
    return plain


def chain_rule(family, plain, model, scale=TWO.alpha / TWO.rank):
    """Gradients of A and B by name from those of the plain model's matrices."""
    found = {}
    for name, (_, a, b) in matrices(model).items():
        of_weight = plain.get_submodule(name).weight.grad
        of_weight = of_weight.T if family == "gpt2" else of_weight
        found[f"{name}.lora_A.default.weight"] = scale * b.detach().T @ of_weight
        found[f"{name}.lora_B.default.weight"] = scale * of_weight @ a.detach().T
    return found


# --- what is put in
@FAMILIES
def test_only_the_adapter_is_trained_and_at_first_changes_nothing(family):
    for dtype in (torch.float32, torch.bfloat16):
        model, plain = make(family, 1).to(dtype), make(family, 1).to(dtype)
        kind = type(model)
        add_adapter(model, Adapter(rank=3), 5)
        own = adapters.adapter_weights(model)
        layers = {"gpt2": 4, "llama": 7}[family]
        assert len(own) == 2 * 2 * layers and type(model) is kind
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(own)
        assert {weight.dtype for weight in own.values()} == {dtype}
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
        assert not any(part.training for part in model.modules())


def test_a_new_adapter_depends_on_its_seed_alone():
    state = torch.get_rng_state()
    first, same, other = (make("gpt2", 1) for _ in range(3))
    for model, seed in ((first, 5), (same, 5), (other, 6)):
        torch.rand(seed)
        before = torch.get_rng_state()
        add_adapter(model, TWO, seed)
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    values = [
        torch.cat([w.flatten() for w in adapters.adapter_weights(m).values()]) for m in (first, same, other)
    ]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_targets():
    gpt2, llama = make("gpt2", 1), make("llama", 1)
    assert targets_of(gpt2, ()) == {"c_attn": True, "c_fc": True, "c_proj": True}
    assert set(targets_of(llama, ())) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    add_adapter(gpt2, Adapter(targets=("attn.c_proj",)), 1)
    assert {name.rsplit(".", 4)[1] for name in matrices(gpt2)} <= {"h", "attn"} and len(matrices(gpt2)) == 2


@pytest.mark.parametrize("target", ["lm_head", "wte", "q_proj", "attn", "proj", "h"])
def test_what_is_no_target(target):
    """The output matrix, the embedding, another family's layer, a block's part, half a name."""
    with pytest.raises(UserError, match=f"'{target}' is not .* those are c_attn, c_fc, c_proj$"):
        add_adapter(make("gpt2", 1), Adapter(targets=("c_fc", target)), 1)


def test_peft_is_asked_for_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="needs the package peft .*pip install 'peft>=") as caught:
        add_adapter(make("gpt2", 1), TWO, 1)
    assert "\n" not in str(caught.value)


# --- gradients
@FAMILIES
@pytest.mark.parametrize("kind", ["sft", "kd"])
def test_gradient_of_supervised_losses(family, kind):
    """Cross-entropy and its mixture with forward KL, from all logits of padded rows, token by token."""
    model, teacher = adapted(family), make(family, 2).double()
    examples = [(prompt, Prompts().response(i)) for i, prompt in enumerate(PROMPTS)]
    tokens = sum(len(response) for _, response in examples)
    ratio = 0.4 if kind == "kd" else 0.0
    loss = example_loss(
        model, collate(examples, EOS), VOCABULARY, tokens, teacher if kind == "kd" else None, ratio
    )
    loss.backward()
    plain = written_out(family, model)
    total = torch.zeros((), dtype=torch.float64)
    for prompt, response in examples:
        row = torch.from_numpy(np.concatenate([prompt, response])).long()[None]
        ours, theirs = (m(row).logits[0, len(prompt) - 1 : -1, :VOCABULARY] for m in (plain, teacher))
        log_q, p = ours - ours.exp().sum(-1, keepdim=True).log(), theirs.detach().softmax(-1)
        for place, token in enumerate(response):
            total = total - (1 - ratio) * log_q[place, int(token)]
            total = total + ratio * (p[place] * (p[place].log() - log_q[place])).sum()
    (total / tokens).backward()
    assert loss.item() == pytest.approx(total.item() / tokens, abs=1e-9)
    compare(model, chain_rule(family, plain, model))


@FAMILIES
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_gradient_of_minillm(family, preset):
    """That of the plain model with the same matrices, which other tests compare with other references."""
    chosen = settings(preset)
    model, teacher = adapted(family), pair(family)[1]
    plain = written_out(family, model)
    made = rollouts(plain, teacher, chosen)
    expected, _ = gradient(plain, made, task(teacher, chosen))
    loss, _ = gradient(model, made, task(teacher, chosen))
    assert loss == pytest.approx(expected, abs=1e-9)
    compare(model, chain_rule(family, plain, model))


def compare(model, expected):
    """Each gradient of the adapter; nothing else has one, not even the output matrix."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert values.abs().max() > 1e-6
        assert_close(found[name], values, atol=1e-9, rtol=1e-6)


def test_dropout_of_the_adapter_is_off_outside_of_updates():
    model = adapted("llama", adapter=Adapter(rank=2, alpha=3.0, dropout=0.5))
    exact = model(IDS).logits
    assert torch.equal(model(IDS).logits, exact)
    assert not torch.equal(model.train()(IDS).logits, exact)


# --- memory and files
@FAMILIES
def test_twins_have_one_base_in_memory_and_adapters_of_their_own(family, tmp_path):
    model = make(family, 1)
    other = twin(model)
    add_adapter(model, TWO, 1)
    save_adapter(adapted(family, 2, dtype=torch.float32), tmp_path)
    load_adapter(other, tmp_path)
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert (weight.data_ptr() == theirs[name].data_ptr()) == ("lora_" not in name), name
    tied = {m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (model, other)}
    assert tied == {family == "gpt2"}
    assert torch.equal(model(IDS).logits, make(family, 1)(IDS).logits)
    assert not torch.equal(other(IDS).logits, model(IDS).logits)


@FAMILIES
def test_a_saved_adapter_is_the_same_again(family, tmp_path):
    model = adapted(family, adapter=Adapter(rank=2, alpha=3.0, dropout=0.25), dtype=torch.bfloat16)
    save_adapter(model, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    other = make(family, 1).bfloat16()
    load_adapter(other, tmp_path)
    assert {name for name, p in other.named_parameters() if p.requires_grad} == set(
        adapters.adapter_weights(model)
    )
    assert torch.equal(other(IDS).logits, model(IDS).logits)


def test_damaged_adapters_are_refused_in_one_line(tmp_path):
    save_adapter(adapted("llama"), tmp_path)
    config, weights = (tmp_path / name for name in (adapters.CONFIG, adapters.WEIGHTS))
    whole = config.read_text(), weights.read_bytes()

    def refused(match, family="llama"):
        with pytest.raises(UserError, match=match) as caught:
            load_adapter(make(family, 1).double(), tmp_path)
        assert "\n" not in str(caught.value)
        config.write_text(whole[0])
        weights.write_bytes(whole[1])

    config.write_text(whole[0][:30])
    refused("not JSON|JSON")
    config.write_text(json.dumps(json.loads(whole[0]) | {"r": 3}))
    refused("not an adapter of this model")
    config.write_text(json.dumps(json.loads(whole[0]) | {"r": "x"}))
    refused("r")
    weights.write_bytes(whole[1][:200])
    refused("cannot load this adapter")
    refused("cannot load this adapter", "gpt2")
    weights.unlink()
    refused("no adapter here")
    model = adapted("llama")
    next(iter(adapters.adapter_weights(model).values())).data[0, 0] = float("nan")
    save_adapter(model, tmp_path)
    refused("not finite")


# --- merging
@FAMILIES
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_merged_equals_apart_and_what_is_written_out(family, dtype, tolerance, tmp_path):
    model = adapted(family, dtype=dtype)
    save_adapter(model, tmp_path)
    whole = merged(make(family, 1).to(dtype), tmp_path, lambda m: m(IDS).logits, tolerance)
    assert not any("lora" in name for name, _ in whole.named_modules())
    expected = written_out(family, model.double())
    assert whole.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        # Once rounded for the product and once for the sum.
        assert_close(
            whole.state_dict()[name].double(),
            value,
            atol=2 * torch.finfo(dtype).eps,
            rtol=torch.finfo(dtype).eps,
        )
    spread = (model(IDS).logits - make(family, 1).double()(IDS).logits).std()
    assert spread > 20 * tolerance * make(family, 1).double()(IDS).logits.std() or dtype == torch.bfloat16


def test_a_merged_model_with_other_logits_is_refused(tmp_path):
    """Here the model changes while it is merged."""
    save_adapter(adapted("gpt2", dtype=torch.float32), tmp_path)
    seen = []

    def logits(model):
        seen.append(model)
        if len(seen) == 2:
            model.transformer.h[0].mlp.c_fc.weight.data[0] += 0.1
        return model(IDS).logits

    with pytest.raises(UserError, match="logits of the merged model differ by .* more than 0.001"):
        merged(make("gpt2", 1), tmp_path, logits, 1e-3)
    with pytest.raises(UserError, match="differ by nan"):
        merged(make("gpt2", 1), tmp_path, lambda m: m(IDS).logits * float("nan"), 1e-3)


def test_the_name_of_the_base_is_only_a_note(tmp_path):
    """Nothing is looked up: peft loads the adapter as before, and it can be trained on."""
    model = adapted("llama", dtype=torch.float32)
    save_adapter(model, tmp_path)
    adapters.name_base(tmp_path, "nobody/nothing", "v1")
    config = json.loads((tmp_path / adapters.CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("nobody/nothing", "v1")
    merged(make("llama", 1), tmp_path, lambda m: m(IDS).logits, 1e-5)
    other = make("llama", 1)
    load_adapter(other, tmp_path)
    assert torch.equal(other(IDS).logits, model(IDS).logits)
