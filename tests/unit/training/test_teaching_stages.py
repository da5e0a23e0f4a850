"""The stages with other teachers: prompts, training, resuming, processes; and `minillm plan` of them."""

import dataclasses
import json
import subprocess

import pytest
import torch
from embedded_data import DATA

from minillm.config.adapter import Adapter
from minillm.config.launch import Launch
from minillm.config.objective_parts import Term
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Model, Sampling, Training
from minillm.config.stage_settings import (
    BaseSettings,
    DataSettings,
    OnPolicySettings,
    PromptsSettings,
    TrainSettings,
)
from minillm.config.strict import parse
from minillm.config.teaching import PROMPTS, Gold, Teaching
from minillm.data import prepare
from minillm.data.rows import Rows
from minillm.data.shown import run_stage as show
from minillm.errors import UserError
from minillm.runtime.engine import Engine
from minillm.training import base_model, onpolicy, supervised
from minillm.training.who_teaches import panel_of

LAUNCH = Launch(micro_batch=4, log_every=1, save_every=2)
SAMPLING = Sampling(max_tokens=8)
TRAINING = Training(lr=2e-2, epochs=1, batch=4, warmup=1)
PHASE = OnPolicy(
    objective="reverse_kl", alpha=0.0, lr=2e-2, rollouts=8, batch=4, collections=2, inner_epochs=2,
    max_tokens=8, lm_coef=0.0, lm_kd_ratio=0.0, warmup=0,
)  # fmt: skip
METHODS = {
    "self": {"teacher": Teaching("self", prompt="demonstration"), "gold": Gold(coefficient=0.2)},
    "ema": {"teacher": Teaching("ema", prompt="demonstration", rate=0.3)},
    "initial": {"teacher": Teaching("initial", prompt="demonstration"), "extrapolate": 1.25},
    "hint": {"teacher": Teaching("pair", prompt="hint"), "gold": Gold(), "init_kl": 0.1},
    "panel": {"teacher": Teaching(by_category={"fact": "other", "who": "other", "copy": "base"})},
    "gold": {"gold": Gold(coefficient=0.5), "also": (Term("teacher_token", until=3),), "lm_coef": 1.0},
}
TEXTS = {**PROMPTS, "hint": "Hint: {output}\n{question}"}


def spec(width):
    return {
        "model_type": "llama", "hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip


class Run:
    """Stages in one folder."""

    def __init__(self, folder, adapter=None):
        self.folder, self.adapter = folder, adapter
        data = parse(DataSettings, DATA, "test")
        prepare.run_stage(data, out=folder / "data")
        for name, text in TEXTS.items():
            made = PromptsSettings("prompts", name, text, "plain", data.train, data.dev)
            show(made, data=folder / "data", out=folder / f"prompts-{name}")
        for name, width in (("base", 16), ("teacher", 16), ("other", 24)):
            model = Model(source="scratch", tokenizer="embedded", architecture=spec(width))
            seed = 1 if name == "base" else 2
            made = BaseSettings("base", model, seed, "fp32", SAMPLING)
            base_model.run_stage(made, LAUNCH, **self.paths(name))
        chosen = TrainSettings("sft", "small", 3, "fp32", TRAINING, SAMPLING, "", adapter)
        supervised.run_stage(chosen, LAUNCH, **self.paths("sft"), base=folder / "base", init=folder / "init")

    def paths(self, name):
        return {
            "data": self.folder / "data",
            "out": self.folder / name,
            "checkpoints": self.folder / "checkpoints",
        }

    def settings(self, method, **changes):
        training = dataclasses.replace(PHASE, **{**METHODS[method], **changes})
        return OnPolicySettings("minillm", method, "small", "big", 3, "fp32", training, self.adapter)

    def inputs(self, method):
        teaching = METHODS[method].get("teacher")
        found = {"init": self.folder / "init", "teacher": self.folder / "teacher"}
        if self.adapter:
            found["base"] = self.folder / "base"
        if teaching:
            found["prompts"] = self.folder / f"prompts-{teaching.prompt or 'usual'}"
            if teaching.panel:
                found["panel"] = [self.folder / name for name in teaching.panel]
        return found

    def train(self, method, name="", launch=LAUNCH, **changes):
        name = name or method
        inputs = self.inputs(method)
        onpolicy.run_stage(self.settings(method, **changes), launch, **self.paths(name), **inputs)
        return self.folder / name

    def lines(self, name):
        text = (self.folder / name / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("adapted"), Adapter(rank=2, alpha=8.0))


def stopped(monkeypatch, run, method, name, steps):
    stop, done = Engine.stop_if_asked, []

    def asked(engine, save):
        engine._stop = engine.step in steps and engine.step not in done
        done.append(engine.step)
        stop(engine, save)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "stop_if_asked", asked)
        for _ in steps:
            with pytest.raises(SystemExit):
                run.train(method, name)


@pytest.mark.parametrize("method", ["self", "ema", "initial", "panel", "gold"])
def test_a_stopped_stage_resumes_to_the_same_bytes(run, monkeypatch, method):
    whole = run.train(method)
    stopped(monkeypatch, run, method, f"{method}-again", (3, 5))
    again = run.train(method, f"{method}-again")
    for name in ("model.safetensors", "selection.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    losses = [[line["loss"] for line in run.lines(p.name) if "loss" in line] for p in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    inputs = json.loads((whole / "provenance.json").read_text())["inputs"]
    expected = {"data", "init", "teacher"} | ({"prompts"} if "teacher" in METHODS[method] else set())
    assert set(inputs) == expected | ({"teacher:base", "teacher:other"} if method == "panel" else set())


@pytest.mark.parametrize("method", ["ema", "initial"])
def test_with_an_adapter_too(adapted, monkeypatch, method):
    whole = adapted.train(method)
    stopped(monkeypatch, adapted, method, f"{method}-again", (3,))
    again = adapted.train(method, f"{method}-again")
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_whoever_teaches_the_dev_set_is_measured_alike(run):
    """Before the first step all methods have one student, and one KL to the pair's teacher."""
    first = {}
    for method in ("self", "ema", "panel", "hint"):
        run.train(method, f"{method}-dev", collections=1)
        first[method] = next(line for line in run.lines(f"{method}-dev") if "dev_loss" in line)
    for key in ("dev_reverse_kl", "dev_forward_kl", "dev_loss", "dev_rouge"):
        assert len({line[key] for line in first.values()}) == 1, key
    # The mean is the student itself then.
    assert first["self"]["dev_objective"] == pytest.approx(first["ema"]["dev_objective"], abs=1e-9)
    assert len({round(line["dev_objective"], 6) for line in first.values()}) == 3


@pytest.mark.parametrize("method", ["ema", "self", "panel"])
def test_two_processes_make_the_same_steps(run, python, warm, method):
    """Up to rounding, under ZeRO 2."""
    launch = Launch(micro_batch=3, log_every=1, zero=2)
    settings = run.settings(method, dropout=False)
    config = run.folder / f"{method}.json"
    config.write_text(json.dumps(dataclasses.asdict(settings)))
    run.train(method, f"{method}-one", launch)
    words = ["--config", str(config), "--launch", json.dumps(dataclasses.asdict(launch))]
    for name, value in {**run.paths(f"{method}-two"), **run.inputs(method)}.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "minillm"]
    done = subprocess.run(
        [*command, "minillm", *words], capture_output=True, text=True, timeout=600, env=warm
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    # Adam makes steps of any size of gradients that are nearly 0, so that weights may differ more.
    losses = [[x["loss"] for x in run.lines(f"{method}-{n}") if "loss" in x] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3, abs=1e-7) and len(losses[0]) == 8
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=2e-3)


def test_a_category_finds_its_teacher(run):
    teaching, folder = METHODS["panel"]["teacher"], run.folder / "prompts-usual"
    names = list(teaching.panel)
    assert names == ["base", "other"]
    found = panel_of(teaching, ["the pair's", *names], names, folder)
    for split in ("train", "dev"):
        records = Rows.open(folder, split).records
        for record in records:
            expected = teaching.by_category.get(record["category"], "the pair's")
            assert found.models[found.teacher_of(split, record["id"])] == expected
    assert set(found.rows["train"].values()) == {0, 1, 2}


# --- refusals
def message(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_inputs_that_are_missing_or_too_long(run, monkeypatch):
    inputs = run.inputs

    def with_inputs(**changes):
        monkeypatch.setattr(run, "inputs", lambda method: {**inputs(method), **changes})

    with_inputs(panel=[run.folder / "other"])
    said = message(lambda: run.train("panel", "x"))
    assert said == "--panel: 1 folders, but by_category names base, other; give one each"
    with_inputs(prompts=None)
    said = message(lambda: run.train("self", "x"))
    assert said == "--prompts: missing; who teaches needs the rows as it is shown them"
    with_inputs()
    teaching = Teaching(by_category={"facts": "base", "who": "other"})
    said = message(lambda: run.train("panel", "x", teacher=teaching))
    assert said.startswith("teacher.by_category.facts: no training row has it; rows have ")
    long = run.folder / "prompts-long"
    data = parse(DataSettings, DATA, "test")
    text = "{question} " + "{output} " * 20
    show(
        PromptsSettings("prompts", "long", text, "plain", data.train, data.dev),
        data=run.folder / "data",
        out=long,
    )
    with_inputs(prompts=long)
    said = message(lambda: run.train("self", "x", teacher=Teaching("self", prompt="long")))
    assert "the model has 256 positions, but a train row has" in said
    assert said.endswith(
        " tokens (data.prompts.long, data.max_response); lower that, or take a model with a longer context"
    )
    assert not (run.folder / "x").exists() and torch.is_grad_enabled()
