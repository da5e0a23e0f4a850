"""A pair with two chat templates from conversations to responses, its stages called one after another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_case import HEADERS, MARKS, SPECIAL, configuration, conversations, make_tokenizer, some_rows, turns
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm.chat import Speaker
from minillm.config import layout
from minillm.config.derive import stage_settings
from minillm.config.experiment import experiment
from minillm.config.launch import Launch
from minillm.config.stages import COMMANDS, entry_of
from minillm.config.strict import parse
from minillm.data.rows import Rows
from minillm.data.sources import read_tests
from minillm.files import sha256
from minillm.runtime.engine import Engine
from minillm.training.supervised import training_examples
from minillm.training.teacher_answers import read_answers

SEED = 10
WEIGHTS = layout.student_weights("small", "minillm", "big", SEED)


class Run:
    """The stages of a configuration, in one process, on the paths that the rules give them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "results/chat"
        self.config = experiment(configuration(folder))

    def at(self, path: str) -> Path:
        return self.folder / path

    def weights(self, name: str) -> Path:
        return self.at(layout.model(name))

    def data(self, name: str) -> Path:
        return self.at(layout.training_data(name))

    def stage(
        self, stage: str, names: dict[str, Any] | None = None, launch: Any = None, **paths: Any
    ) -> Path:
        entry = entry_of(stage)
        assert entry is not None and stage in COMMANDS
        cls = entry.settings_class()
        settings = parse(cls, stage_settings(self.config, stage, **(names or {})), stage)
        given = [settings, launch or Launch(micro_batch=3, eval_batch=8, log_every=1)][: 1 + entry.launched]
        if "checkpoints" in (*entry.required, *entry.optional):
            paths.setdefault("checkpoints", self.at(layout.checkpoints()))
        entry.entry_point()(*given, **paths)
        return paths["out"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    make_tokenizer(folder / "marks", MARKS)
    make_tokenizer(folder / "headers", HEADERS)
    for name, split, count in (("train", "train", 12), ("dev", "dev", 3), ("test", "test", 3)):
        conversations(folder / f"{name}.jsonl", *some_rows(split, count))
    run = Run(folder)
    for name in ("marks", "headers"):
        run.stage("data", {"tokenizer": name}, out=run.data(name))
    for own, other in (("marks", "headers"), ("headers", "marks")):
        test = run.at(layout.test_set(own, "test"))
        run.stage("testset", {"test": "test"}, data=run.data(own), also=[run.data(other)], out=test)
    for model, data in (("big", "headers"), ("small", "marks")):
        run.stage("base", {"model": model}, data=run.data(data), out=run.weights(f"{model}/base"))
    big, small = run.weights("big/base"), run.weights("small/base")
    teacher = run.weights("big/teacher")
    run.stage("teacher", {"model": "big"}, data=run.data("headers"), base=big, out=teacher)
    init = run.weights(layout.init_weights("small", SEED))
    out = run.weights(layout.student_weights("small", "sft", "", SEED))
    run.stage("sft", {"model": "small", "seed": SEED}, data=run.data("marks"), base=small, out=out, init=init)
    pseudo = run.at(layout.pseudo_answers("headers", "big"))
    run.stage("pseudo", {"teacher": "big"}, data=run.data("headers"), teacher=teacher, out=pseudo)
    pair = {"model": "small", "teacher": "big", "seed": SEED}
    both = {"data": run.data("marks"), "teacher": teacher, "teacher_data": run.data("headers")}
    more = {"kd": {"base": small}, "seqkd": {"base": small, "pseudo": pseudo}, "minillm": {"init": init}}
    for method, paths in more.items():
        out = run.weights(layout.student_weights("small", method, "big", SEED))
        run.stage(method, pair, **both, **paths, out=out)
    return run


def test_every_model_keeps_its_template_and_end(run: Run) -> None:
    for weights, template, end in (
        ("big/base", "headers", "<|eot|>"),
        ("big/teacher", "headers", "<|eot|>"),
        ("small/base", "marks", "<|im_end|>"),
        (WEIGHTS, "marks", "<|im_end|>"),
    ):
        tokenizer = AutoTokenizer.from_pretrained(run.weights(weights))
        assert tokenizer.eos_token == end
        assert tokenizer.chat_template == (run.data(template) / "chat_template.jinja").read_text()
        model = AutoModelForCausalLM.from_pretrained(run.weights(weights))
        assert model.generation_config.eos_token_id == model.config.eos_token_id == SPECIAL.index(end)


def test_provenance_names_both_prompts(run: Run) -> None:
    cards = {n: json.loads((run.data(n) / "card.json").read_text())["content"] for n in ("marks", "headers")}
    for method in ("kd", "seqkd", "minillm"):
        folder = run.weights(layout.student_weights("small", method, "big", SEED))
        inputs = json.loads((folder / "provenance.json").read_text())["inputs"]
        assert (inputs["data"], inputs["teacher_data"]) == (cards["marks"], cards["headers"])


def test_seqkd_trains_on_the_teachers_answers_with_the_students_end(run: Run) -> None:
    path = run.at(layout.pseudo_answers("headers", "big"))
    theirs = read_answers(path, run.data("headers"))
    ours, dev = training_examples(run.data("marks"), path, run.data("headers"))
    rows = Rows.open(run.data("marks"), "train")
    assert len(ours) == len(rows) == len(theirs["train"]) and len(dev) == 2
    swapped = {2: 6, 6: 2}
    for i, ((prompt, response), (_, answer)) in enumerate(zip(ours, theirs["train"], strict=True)):
        assert prompt.tolist() == rows.prompt(i).tolist()
        assert response.tolist() == [swapped.get(token, token) for token in answer.tolist()]


def test_an_interrupted_run_ends_in_the_same_weights(run: Run, tmp_path: Path, monkeypatch) -> None:
    """Killed in the middle of a collection, whose samples and prompts are then read from the checkpoint.

    It also measures what costs something, which changes no weight.
    """
    paths = {
        "data": run.data("marks"),
        "init": run.weights(layout.init_weights("small", SEED)),
        "teacher": run.weights("big/teacher"),
        "teacher_data": run.data("headers"),
        "out": tmp_path / "model",
        "checkpoints": tmp_path / "checkpoints",
    }
    names = {"model": "small", "teacher": "big", "seed": SEED}
    # Without the cache the teacher reads its prompts again at each step.
    launch = Launch(micro_batch=3, eval_batch=8, log_every=1, save_every=1, teacher_cache=False)
    run.stage(
        "minillm", names, launch, **{**paths, "out": tmp_path / "whole", "checkpoints": tmp_path / "other"}
    )
    update = Engine.update

    def killed(engine, *arguments, **more):
        if engine.step == 3:
            raise KeyboardInterrupt
        return update(engine, *arguments, **more)

    monkeypatch.setattr(Engine, "update", killed)
    launch = dataclasses.replace(launch, initial_kl=True, gradient_variance=True)
    with pytest.raises(KeyboardInterrupt):
        run.stage("minillm", names, launch, **paths)
    monkeypatch.setattr(Engine, "update", update)
    run.stage("minillm", names, launch, **paths)
    assert sha256(tmp_path / "model/model.safetensors") == sha256(tmp_path / "whole/model.safetensors")
    logged = [json.loads(line) for line in (tmp_path / "model/metrics.jsonl").read_text().splitlines()]
    assert {"rollout_reverse_kl", "dev_reverse_kl"} <= {key for line in logged for key in line}
    first, *later = [line["dev_init_kl"] for line in logged if "dev_loss" in line]
    assert first == pytest.approx(0, abs=1e-6) and later and min(later) > 1e-6
    assert all(line["grad_variance"] is not None for line in logged if "loss" in line)


def test_responses_and_measurements(run: Run) -> None:
    test, folder = run.at(layout.test_set("marks", "test")), run.weights(WEIGHTS)
    out = run.stage("generate", test=test, model=folder, out=run.at(layout.generations(WEIGHTS, "test")))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    tests = {row["id"]: row for row in read_tests(test)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [row["id"] for row in rows] == sorted(tests) and len(rows) == 3
    for row in rows:
        assert row["messages"] == tests[row["id"]]["messages"]
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        assert text == row["prompt"] and text.endswith("</think>\n\n")
        tokens = row["response_tokens"]
        assert (tokens[-1] == SPECIAL.index("<|im_end|>")) == row["finished"]
    teacher = run.weights("big/teacher")
    theirs = run.at(layout.test_set("headers", "test"))
    samples = run.stage("samples", test=theirs, model=teacher, out=run.at(layout.samples("big", "test")))
    metric = run.at(layout.metric("exposure_bias", WEIGHTS, "test", "big"))
    run.stage("exposure_bias", samples=samples, model=folder, teacher=teacher, test=test, out=metric)
    found = json.loads(metric.read_text())
    # The first position's prefix is a prompt, of the same rows for samples of either model.
    assert found["n"] == 3 and found["ex_acc_err"][0] == pytest.approx(0, abs=1e-3)
    assert str(test) in found["sources"]
    loss = run.at(layout.metric("reference_loss", WEIGHTS, "test"))
    run.stage("reference_loss", test=test, model=folder, out=loss)
    nll = json.loads(loss.read_text())["nll"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    for row, value in zip(tests.values(), nll, strict=True):
        answer = tokenizer.encode(row["references"][0], add_special_tokens=False)
        answer = [*answer, tokenizer.eos_token_id][: run.config.data.max_response]
        ids = torch.tensor([[*row["prompt_tokens"], *answer]])
        with torch.no_grad():
            laws = model(ids).logits[0, len(row["prompt_tokens"]) - 1 : -1].double().log_softmax(-1)
        assert value == pytest.approx(-sum(laws[i, t].item() for i, t in enumerate(answer)), rel=1e-4)


def test_a_student_answers_with_transformers_alone_and_in_a_chat(run: Run) -> None:
    """The same greedy tokens from the folder, by its own template, as from the row's prompt."""
    folder = run.weights(WEIGHTS)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    (row, *_) = read_tests(run.at(layout.test_set("marks", "test")))
    encoded = tokenizer.apply_chat_template(
        row["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert encoded["input_ids"][0].tolist() == row["prompt_tokens"]
    answer = model.generate(**encoded, max_new_tokens=12, do_sample=False)[0, len(row["prompt_tokens"]) :]
    ids, expected = np.array(row["prompt_tokens"]), []
    while len(expected) < 12 and tokenizer.eos_token_id not in expected:
        with torch.no_grad():
            expected.append(int(model(torch.tensor([[*ids.tolist(), *expected]])).logits[0, -1].argmax()))
    assert answer.tolist() == expected
    speaker = Speaker.load(folder, "chat")
    line = turns("Who?")
    text = tokenizer.apply_chat_template(line, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(speaker.prompt("Who?")[0]) == text and text.endswith("</think>\n\n")


def test_rows_of_every_turn_reach_both_data_folders(run: Run) -> None:
    """12 conversations, every third with two answers."""
    counts = [len(Rows.open(run.data(name), "train")) for name in ("marks", "headers")]
    assert counts == [16, 16] and dataclasses.asdict(run.config.data)["turns"] == "all"
