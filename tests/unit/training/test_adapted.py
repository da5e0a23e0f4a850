"""Training adapters: engines under ZeRO 0, 1 and 3, then the stages themselves, with resuming and merging."""

import dataclasses
import json
import subprocess

import pytest
import torch
from embedded_data import DATA
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, Prompts, rollouts, settings, task
from safetensors.torch import load_file
from tiny_models import make
from torch.testing import assert_close
from zero_case import supervised

from minillm.config.adapter import Adapter
from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Model, Sampling, Training
from minillm.config.stage_settings import BaseSettings, DataSettings, OnPolicySettings, TrainSettings
from minillm.config.strict import parse
from minillm.data import prepare
from minillm.errors import UserError
from minillm.files import hashes
from minillm.models.adapters import ADAPTER, adapter_weights, add_adapter, twin
from minillm.models.loading import load_model
from minillm.runtime.card import model_card
from minillm.runtime.engine import Engine
from minillm.runtime.processes import start
from minillm.training import base_model, onpolicy
from minillm.training import supervised as stages
from minillm.training.rollout_losses import micro_batches
from minillm.training.supervised_loss import example_loss

STEPS = 4
OWN, THEIRS = Adapter(rank=2, alpha=8.0, dropout=0.1), Adapter(rank=3, alpha=12.0)
CASES = [("gpt2", "sft"), ("gpt2", "kd"), ("gpt2", "minillm"), ("llama", "minillm")]


# --- engines
def teacher_on(base):
    """A model on the weights of `base`, with an adapter that does something."""
    model = twin(base)
    add_adapter(model, THEIRS, 7)
    for weight in adapter_weights(model).values():
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    return model


def parts_of(engine, teacher, kind, made, chosen):
    if kind == "minillm":
        return micro_batches(engine, task(teacher, chosen), made, list(range(COUNT)))
    examples = [(prompt, Prompts().response(i)) for i, prompt in enumerate(PROMPTS)]
    tokens = sum(len(response) for _, response in examples)

    def loss(part):
        batch = stages.collate(part, EOS)
        mine = teacher if kind == "kd" else None
        return example_loss(engine.engine, batch, VOCABULARY, tokens, mine, 0.5), {}

    return engine.mine(examples, length=lambda e: len(e[0]) + len(e[1])), loss


def trained(folder, family, kind, zero, precision="fp32", until=STEPS):
    """(adapter, base's weights, losses, engine) after the steps, resumed if there is a checkpoint."""
    world, dtype = start(0), {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    chosen = settings("paper", lr=1e-2, warmup=0, dropout=True) if kind == "minillm" else supervised()
    student = make(family, 1).to(dtype)
    bare, teacher = twin(student), teacher_on(make(family, 1).to(dtype) if zero == 3 else student)
    made = rollouts(make(family, 1), teacher.float(), chosen) if kind == "minillm" else None
    teacher.to(dtype)
    add_adapter(student, OWN, 3)
    launch = Launch(zero=zero, micro_batch=COUNT)
    engine = Engine(student, chosen, launch, world, precision, folder, STEPS)
    frozen = engine.frozen(teacher)
    if zero < 3:
        for model in (frozen, bare):
            ours, theirs = model.get_input_embeddings().weight, engine.model.get_input_embeddings().weight
            assert ours.data_ptr() == theirs.data_ptr(), "one base in memory"
    engine.resume()
    losses = []
    while engine.step < until:
        losses.append(float(engine.update(*parts_of(engine, frozen, kind, made, chosen))["loss"]))
    if until < STEPS:
        engine.save({})
    with engine.whole():
        weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    own = {name for name in weights if "lora_" in name}
    return (
        {name: weights[name] for name in own},
        {name: weights[name] for name in weights.keys() - own},
        losses,
        engine,
    )


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_zero_stages_agree_and_only_adapters_change(tmp_path, family, kind):
    results = {zero: trained(tmp_path / str(zero), family, kind, zero) for zero in (0, 1, 3)}
    before = dict(make(family, 1).named_parameters())
    for zero, (own, base, losses, _) in results.items():
        assert own.keys() == results[0][0].keys() and len(losses) == STEPS
        for name, values in base.items():
            assert torch.equal(values, before[name.replace(".base_layer", "")]), (zero, name)
        for name, values in own.items():
            assert_close(values, results[0][0][name], atol=1e-4, rtol=1e-3)
        assert losses == pytest.approx(results[0][2], abs=1e-5)
    fresh = make(family, 1)
    add_adapter(fresh, OWN, 3)
    for name, values in adapter_weights(fresh).items():
        assert (results[0][0][name] - values).abs().max() > 1e-3, name


@pytest.mark.parametrize(
    ("family", "kind", "zero", "precision"),
    [
        *(("gpt2", "kd", zero, "fp32") for zero in (0, 1, 3)),
        *(("llama", "minillm", zero, "fp32") for zero in (0, 2, 3)),
        ("gpt2", "minillm", 1, "bf16"),
    ],
)
def test_resuming_is_exact_and_checkpoints_hold_only_the_adapter(tmp_path, family, kind, zero, precision):
    whole, _, losses, engine = trained(tmp_path / "whole", family, kind, zero, precision)
    trained(tmp_path / "half", family, kind, zero, precision, until=STEPS // 2)
    own, _, rest, _ = trained(tmp_path / "half", family, kind, zero, precision)
    assert rest == losses[STEPS // 2 :]
    assert all(torch.equal(own[name], whole[name]) for name in whole)
    [saved] = (tmp_path / "half").glob("step-*")
    count, found = sum(values.numel() for values in whole.values()), 0
    for path in (saved / "deepspeed").glob("*.pt"):
        content = torch.load(path, weights_only=False)
        held = [name for name, v in (content.get("module") or {}).items() if v.numel()]
        assert all("lora_" in name for name in held) and (held or zero)
        found += storages(content)
    assert engine.checkpoint_bytes == count * (12 if zero else 16)
    # Steps, shapes, padding.
    assert 12 * count <= found <= engine.checkpoint_bytes + 4000


def storages(value, seen=None):
    """Bytes of all tensors in it, each memory once."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        place = value.untyped_storage().data_ptr()
        new = place not in seen
        seen.add(place)
        return value.untyped_storage().nbytes() * new
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(storages(part, seen) for part in inner)


# --- stages
ARCHITECTURES = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "llama": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}  # fmt: skip
LAUNCH = Launch(micro_batch=4, log_every=1, save_every=2)
TRAINING = Training(lr=2e-2, epochs=1, batch=4, warmup=1)
SAMPLING = Sampling(max_tokens=8)
PHASE = OnPolicy(
    lr=2e-2,
    rollouts=8,
    batch=4,
    collections=2,
    inner_epochs=2,
    max_tokens=8,
    lm_batch=4,
    init_kl=0.1,
    warmup=0,
)


class Run:
    """Stages on one base model, in one folder."""

    def __init__(self, folder, data, family):
        self.folder, self.data = folder, data
        spec = Model(source="scratch", tokenizer="embedded", architecture=ARCHITECTURES[family])
        base_model.run_stage(
            BaseSettings("base", spec, 1, "fp32", SAMPLING), LAUNCH, **self.paths("base", base=False)
        )

    def paths(self, name, base=True):
        return {
            "data": self.data,
            "out": self.folder / name,
            "checkpoints": self.folder / "checkpoints",
            **({"base": self.folder / "base"} if base else {}),
        }

    def supervised(self, stage, adapter, seed=3, training=TRAINING, **inputs):
        chosen = TrainSettings(stage, "model", seed, "fp32", training, SAMPLING, "", adapter)
        stages.run_stage(chosen, LAUNCH, **self.paths(stage), **inputs)

    def minillm(self, name="minillm", adapter=OWN, launch=LAUNCH, base=True):
        start_from = {"init": self.folder / "init", "teacher": self.folder / "teacher"}
        onpolicy.run_stage(self.on_policy(adapter), launch, **self.paths(name, base), **start_from)

    def on_policy(self, adapter=OWN):
        return OnPolicySettings("minillm", "minillm", "model", "teacher", 3, "fp32", PHASE, adapter)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    prepare.run_stage(parse(DataSettings, DATA, "test"), out=folder)
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def run(request, tmp_path_factory, data):
    made = Run(tmp_path_factory.mktemp(request.param), data, request.param)
    made.base = hashes(made.folder / "base")
    made.supervised("teacher", THEIRS, seed=5)
    made.supervised("sft", OWN, init=made.folder / "init")
    if request.param == "gpt2":
        kd = Training(lr=2e-2, epochs=1, batch=4, warmup=1, loss="kd")
        made.supervised("kd", OWN, training=kd, teacher=made.folder / "teacher")
    made.minillm()
    return made


def models(run):
    return [
        name for name in ("teacher", "sft", "init", "kd", "minillm") if (run.folder / name / ADAPTER).is_dir()
    ]


def test_outputs_are_base_and_adapter_merged(run):
    """W + alpha / rank B A of the files, for each model with its own adapter; the base is what it was."""
    assert hashes(run.folder / "base") == run.base
    base = load_file(run.folder / "base/model.safetensors")
    seen = []
    for name in models(run):
        folder = run.folder / name
        whole, adapter = (
            load_file(folder / "model.safetensors"),
            load_file(folder / ADAPTER / "adapter_model.safetensors"),
        )
        config = json.loads((folder / ADAPTER / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == ((3, 12.0) if name == "teacher" else (2, 8.0))
        assert whole.keys() == base.keys()
        changed = set()
        for key, b in adapter.items():
            if "lora_B" not in key:
                continue
            layer = key.removeprefix("base_model.model.").replace(".lora_B", "")
            change = 4.0 * b.double() @ adapter[key.replace("lora_B", "lora_A")].double()
            change = change.T if config["fan_in_fan_out"] else change
            assert change.abs().max() > 1e-4
            assert_close(whole[layer].double(), base[layer].double() + change, atol=1e-6, rtol=1e-6)
            changed.add(layer)
        assert all(torch.equal(whole[key], base[key]) for key in whole.keys() - changed)
        seen.append(torch.cat([values.flatten() for values in adapter.values()]))
        record = json.loads((folder / "provenance.json").read_text())
        assert record["settings"]["adapter"]["rank"] == config["r"] and "peft" in record["packages"]
        assert f"LoRA, rank {config['r']}, alpha" in model_card(record)
    assert len({tuple(values.tolist()) for values in seen}) >= len(seen) - 1, "sft and init may be one step"


def test_each_model_loads_its_own_adapter_on_one_base(run, monkeypatch):
    """At the start of on-policy training: student, initial student and teacher as in their folders."""
    seen, load = {}, onpolicy.load_frozen

    def noted(folder, *rest):
        seen[folder.name] = load(folder, *rest)
        return seen[folder.name]

    def stop(engine, *_):
        seen["student"] = engine.model
        raise SystemExit

    monkeypatch.setattr(onpolicy, "load_frozen", noted)
    monkeypatch.setattr(onpolicy, "train", stop)
    with pytest.raises(SystemExit):
        run.minillm("unused")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        found = {name: seen[name](ids).logits for name in ("teacher", "init", "student")}
        merged = {name: load_model(run.folder / name, "fp32")(ids).logits for name in ("teacher", "init")}
    for name, expected in (("teacher", "teacher"), ("init", "init"), ("student", "init")):
        assert_close(found[name], merged[expected], atol=1e-5, rtol=1e-5)
    assert (found["teacher"] - found["student"]).abs().max() > 0.01
    own = {name: adapter_weights(model) for name, model in seen.items()}
    for name, weight in seen["student"].named_parameters():
        pointers = {
            dict(model.named_parameters())[name].data_ptr()
            for model in seen.values()
            if name not in own["student"]
        }
        assert len(pointers) <= 1 and (name in own["student"] or weight.data_ptr() in pointers), name


def stopped(monkeypatch, run, steps, **more):
    """Start the stage, which a signal stops after each of these steps, as often."""
    stop, done = Engine.stop_if_asked, []

    def asked(engine, save):
        engine._stop = engine.step in steps and engine.step not in done
        done.append(engine.step)
        stop(engine, save)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "stop_if_asked", asked)
        for _ in steps:
            with pytest.raises(SystemExit):
                run.minillm(**more)


def test_a_stopped_stage_resumes_to_the_same_bytes(run, monkeypatch):
    stopped(monkeypatch, run, (3, 5), name="again")
    run.minillm("again")
    names = ["model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
    for name in [*names, "selection.json"]:
        assert (run.folder / "again" / name).read_bytes() == (run.folder / "minillm" / name).read_bytes(), (
            name
        )


@pytest.mark.parametrize("run", ["gpt2"], indirect=True)
def test_two_processes_resume_what_one_has_saved_under_zero_3(run, python, warm, monkeypatch):
    """Weights sharded from the file on, each model with a base of its own, gathered for the export."""
    launch = Launch(micro_batch=2, log_every=1, zero=3)
    stopped(monkeypatch, run, (3,), name="two", launch=launch)
    config = run.folder / "minillm.json"
    config.write_text(json.dumps(dataclasses.asdict(run.on_policy())))
    paths = run.paths("two") | {"init": run.folder / "init", "teacher": run.folder / "teacher"}
    options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    options += ["--config", str(config), "--launch", json.dumps(dataclasses.asdict(launch))]
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "minillm"]
    done = subprocess.run(
        [*command, "minillm", *options], capture_output=True, text=True, timeout=600, env=warm
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "converted for 2" in done.stdout and "resumes from step 3" in done.stdout
    one, two = (load_file(run.folder / name / "model.safetensors") for name in ("minillm", "two"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert_close(two[name], values, atol=1e-4, rtol=1e-3)


def test_what_does_not_belong_together_is_refused(run):
    with pytest.raises(UserError, match="also needs --base"):
        run.minillm("other", base=False)
    with pytest.raises(UserError, match="init: its adapter is .*'rank': 2.* here it is .*'rank': 4"):
        run.minillm("other", adapter=Adapter(rank=4))
    weights = run.folder / "init/adapter/adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match="init: adapter/adapter_model.safetensors is not what provenance"):
            run.minillm("other")
    finally:
        weights.write_bytes(whole)
    assert not (run.folder / "other").exists()
