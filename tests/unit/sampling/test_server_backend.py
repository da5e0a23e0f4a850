"""A server in the place of a teacher: OpenAI's form of completions, by a stand-in with a tiny model."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import backends_case as case
import numpy as np
import pytest
from data_case import BASE, message
from transformers import PreTrainedTokenizerBase

from minillm.config.data import Tokenizer
from minillm.config.launch import Launch
from minillm.config.sampling import Sampling
from minillm.config.sections import Model
from minillm.config.stage_settings import BaseSettings, GenerateSettings
from minillm.data.prepare import run_stage as prepare
from minillm.data.tokenizers import vocabulary_size
from minillm.evaluation.generations import read_generations
from minillm.files import PROVENANCE, identity
from minillm.models.loading import decode, load_model, load_tokenizer
from minillm.models.served import Served, read_served
from minillm.sampling import server_backend
from minillm.sampling.answerer import seed_of
from minillm.sampling.generate import answer_all, run_stage
from minillm.sampling.sample import sample
from minillm.sampling.server_backend import Server
from minillm.training.base_model import run_stage as base

KEY = "sk-0123456789abcdef"
GREEDY = Sampling(top_k=1, max_tokens=6)


class Stand(ThreadingHTTPServer):
    """Greedy answers of a model folder; `change` edits the reply's choice, `failing` calls end with 500."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.words = load_model(folder, "fp32"), load_tokenizer(folder)
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice
        self.status, self.failing = 200, 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        response = sample(
            self.model,
            [np.asarray(body["prompt"])],
            [0],
            Sampling(top_k=1, max_tokens=body["max_tokens"]),
            seed=0,
            step=0,
            ends=body["stop_token_ids"][:1],
            pad=0,
            vocabulary=vocabulary_size(self.words),
        )[0]
        text = decode(self.words, response.tokens)
        reason = "stop" if response.finished else "length"
        return self.change(
            {"text": text, "finish_reason": reason, "index": 0, "token_ids": response.tokens.tolist()}
        )


class Handler(BaseHTTPRequestHandler):
    server: Stand

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.add(self.headers["authorization"])
            fails, self.server.failing = self.server.failing > 0, self.server.failing - 1
            answer = {"choices": [self.server.answer(body)], "object": "text_completion"}
        status = 500 if fails else self.server.status
        if status != 200:
            answer = {"error": {"message": f"no list of ids; asked with {self.headers['authorization']}"}}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.model_folder(tmp_path_factory.mktemp("served") / "model", "llama", seed=1)


@pytest.fixture
def stand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    pytest.importorskip("openai", reason="openai is not installed here")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setattr(server_backend, "BACKOFF", 0.01)
    made = Stand(folder)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def answers_of(stand: Stand, words: PreTrainedTokenizerBase, journal: Path, **more: Any) -> Any:
    launch = Launch(**{"eval_batch": 1, **more})
    server = Server(Served(stand.url, "teacher", "TEACHER_KEY"), words, launch)
    return answer_all(server, words, case.requests(words), GREEDY, launch, case.WORLD, journal)


def test_a_server_gives_the_answers_of_its_model(stand: Stand, folder: Path, tmp_path: Path) -> None:
    words = load_tokenizer(folder)
    ours = case.ours(folder, case.requests(words), GREEDY, tmp_path / "ours")
    stand.failing = 1
    assert answers_of(stand, words, tmp_path / "a", eval_batch=3) == ours
    assert any(a["finished"] for a in ours) and not all(a["finished"] for a in ours)
    assert stand.keys == {f"Bearer {KEY}"}
    seeds = {body["seed"] for body in stand.bodies}
    assert seeds == {seed_of(request) for request in case.requests(words)} and len(seeds) == 10
    body = stand.bodies[0]
    assert body["model"] == "teacher" and body["prompt"] in [words.encode(p) for p in case.PROMPTS]
    assert (body["temperature"], body["top_k"], body["top_p"]) == (0.0, 0, 1.0)
    assert body["ignore_eos"] and body["return_token_ids"] and body["repetition_penalty"] == 1.0


def test_text_without_token_ids_is_encoded_again(stand: Stand, folder: Path, tmp_path: Path) -> None:
    words, texts = load_tokenizer(folder), iter(["the cat sat", " on the mat"] * 5)
    stand.change = lambda choice: {"text": next(texts), "finish_reason": "stop"}
    answers = answers_of(stand, words, tmp_path / "a")
    eos = words.eos_token_id
    for answer in answers:
        assert answer["response_tokens"] in (
            [*words.encode(text), eos][:6] for text in ("the cat sat", " on the mat")
        )
        assert answer["finished"] is (answer["response_tokens"][-1] == eos)


def test_the_interrupted_job_asks_only_for_what_is_left(stand: Stand, folder: Path, tmp_path: Path) -> None:
    words = load_tokenizer(folder)

    def fails(choice: dict[str, Any]) -> dict[str, Any]:
        return choice if len(stand.bodies) <= 4 else {**choice, "finish_reason": "odd"}

    stand.change = fails
    assert "finish_reason 'odd'" in message(lambda: answers_of(stand, words, tmp_path / "a"))
    first = len((tmp_path / "a.0of1").read_text().splitlines())
    assert first == 4
    stand.bodies, stand.change = [], lambda choice: choice
    answers = answers_of(stand, words, tmp_path / "a")
    assert len(stand.bodies) == 6
    assert answers == case.ours(folder, case.requests(words), GREEDY, tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: {**c, "token_ids": [5000]}, "token 5000 is not among the tokenizer's"),
        (lambda c: {**c, "token_ids": ["a"]}, "'token_ids' are no list of token ids"),
        (lambda c: {**c, "token_ids": []}, "a response of 0 tokens; max_tokens is 6"),
        (lambda c: {**c, "token_ids": [5] * 7}, "a response of 7 tokens; max_tokens is 6"),
        (
            lambda c: {**c, "token_ids": [5], "finish_reason": "stop"},
            "but not at the EOS 0; the server stops",
        ),
        (lambda c: {**c, "token_ids": [0, 5], "finish_reason": "stop"}, "but not at the EOS 0"),
        (lambda c: {**c, "token_ids": [70, 0], "finish_reason": "stop", "text": "xyzzy"}, '"xyzzy" is '),
        (lambda c: {"finish_reason": "stop"}, "its reply is no completion"),
        (lambda c: {**c, "text": None}, "a reply without text"),
    ],
)
def test_what_is_no_answer_in_the_runs_tokens_is_one_line(
    stand: Stand, folder: Path, tmp_path: Path, change: Any, problem: str
) -> None:
    stand.change = change
    said = message(lambda: answers_of(stand, load_tokenizer(folder), tmp_path / "a"))
    assert said.startswith(stand.url) and problem in said


def test_the_key_is_shown_nowhere(
    stand: Stand, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = load_tokenizer(folder)
    stand.status = 400
    said = message(lambda: answers_of(stand, words, tmp_path / "a"))
    assert "status 400 for the model 'teacher'" in said and KEY not in said and "checkpoints.path" in said
    stand.status = 401
    assert "the key in $TEACHER_KEY was refused" in message(lambda: answers_of(stand, words, tmp_path / "b"))
    monkeypatch.delenv("TEACHER_KEY")
    assert message(lambda: answers_of(stand, words, tmp_path / "c")).startswith(
        "checkpoints.key_variable: $TEACHER_KEY is not set"
    )


def test_a_served_teacher_is_a_folder_without_weights(
    stand: Stand, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its entry of `checkpoints` through `base` to a test set."""
    data = dataclasses.replace(BASE, max_prompt=200, tokenizer=Tokenizer("folder", path=str(folder)))
    prepare(data, out=tmp_path / "data")
    spec = Model("server", "t", path=f"{stand.url}/", served_name="teacher", key_variable="TEACHER_KEY")
    settings = BaseSettings("base", spec, 0, "fp32", Sampling())
    made = tmp_path / "made"
    base(settings, Launch(), data=tmp_path / "data", out=made, checkpoints=tmp_path)
    assert read_served(made) == Served(stand.url, "teacher", "TEACHER_KEY")
    record = json.loads((made / PROVENANCE).read_text())
    assert record["settings"]["model"]["served_name"] == "teacher" and identity(made) == record["content"]
    assert "a server (server.json), without weights" in message(lambda: load_model(made, "fp32"))
    words = load_tokenizer(folder)
    test = case.test_file(tmp_path / "test.jsonl", words)
    run_stage(
        GenerateSettings("generate", (10, 20), "fp32", GREEDY),
        Launch(),
        test=test,
        model=made,
        out=tmp_path / "out.jsonl",
    )
    meta, rows, _ = read_generations(tmp_path / "out.jsonl")
    assert meta["answered_by"] == {"program": "server", "address": stand.url, "model": "teacher"}
    assert meta["model"] == identity(made) and KEY not in (tmp_path / "out.meta.json").read_text()
    ours = case.ours(folder, case.requests(words), GREEDY, tmp_path / "ours")
    assert [rows[q.seed][q.row]["response_tokens"] for q in case.requests(words)] == [
        a["response_tokens"] for a in ours
    ]
