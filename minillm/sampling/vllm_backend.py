"""Responses by vLLM, which runs in a process and mostly an environment of its own (vllm_worker.py).

The distributions are the same; the random numbers are vLLM's, from one seed per request, and so independent
of batches, order, processes and resuming (beyond rounding).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoConfig

from minillm.config.sampling import Sampling, check_backend
from minillm.errors import UserError
from minillm.files import whole_folder
from minillm.models.loading import load_model
from minillm.models.positions import check_positions
from minillm.models.saving_cut import save_cut
from minillm.runtime.processes import World
from minillm.sampling import vllm_worker
from minillm.sampling.answerer import Answer, Answerer, Request, seed_of

# The Python of the environment that vLLM is installed in.
VARIABLE = "MINILLM_VLLM_PYTHON"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Of torchrun: they would make vLLM a part of this stage's processes.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


def python() -> str:
    """The Python to run vLLM with.  Raises UserError, which says how to get vLLM, if there is none."""
    named = os.environ.get(VARIABLE, "")
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise UserError(f"${VARIABLE}: '{named}' is no program; name the Python of vLLM's environment")
        return named
    if importlib.util.find_spec("vllm"):
        return sys.executable
    raise UserError(
        "backend: vllm is not installed; `python3 -m venv vllm && vllm/bin/pip install vllm==0.32.0`, then "
        f"`export {VARIABLE}=$PWD/vllm/bin/python` (docs/running.md)"
    )


class Vllm(Answerer):
    """vLLM with the weights of a model folder; it starts with the first requests.

    memory: share of the GPU's memory that it may take.  scratch: where a copy of the weights may be written.
    """

    def __init__(self, folder: Path, precision: str, world: World, memory: float, scratch: Path) -> None:
        self.program = python()
        self.folder, self.precision, self.world = folder, precision, world
        self.memory, self.scratch = memory, scratch
        self.version = ""
        self.length = 0
        self._process: subprocess.Popen[str] | None = None

    def identity(self) -> dict[str, str]:
        return {"program": "vllm", "version": self.version}

    def check(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> None:
        """Raises UserError for settings that vLLM lacks, or prompts that are too long for the model."""
        check_backend(sampling, "sampling")
        longest = max(map(len, prompts), default=0)
        # All that `check_positions` reads of a model.
        model = SimpleNamespace(config=self._config(), name_or_path=str(self.folder))
        what = f"a prompt has {longest} tokens and max_tokens is {sampling.max_tokens}"
        check_positions(cast(Any, model), longest + sampling.max_tokens, what)

    def answers(
        self, requests: Sequence[Request], sampling: Sampling, eos: int, vocabulary: int
    ) -> Iterator[tuple[Request, Answer]]:
        """As Answerer says.  Raises UserError with vLLM's own words if it cannot answer."""
        if not requests:
            return
        length = max(len(request.prompt) for request in requests) + sampling.max_tokens
        try:
            self._start(length, vocabulary)
            self._send(
                {
                    "answer": [[i, q.prompt.tolist(), seed_of(q)] for i, q in enumerate(requests)],
                    "eos": eos,
                    "temperature": sampling.temperature,
                    "top_k": sampling.top_k,
                    "top_p": sampling.top_p,
                    "max_tokens": sampling.max_tokens,
                }
            )
            for _ in requests:
                number, tokens, finished = self._receive()
                yield requests[number], Answer(np.asarray(tokens, dtype=np.int32), finished)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End vLLM's process and remove what was copied for it."""
        process, self._process = self._process, None
        if process is not None:
            # With what it may have started to compile.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self, length: int, vocabulary: int) -> None:
        """Start vLLM for prompts and responses of `length` tokens, unless such a process runs."""
        if self._process is not None and length <= self.length:
            return
        self.close()
        self.length = length
        environment = {key: value for key, value in os.environ.items() if key not in RANKS}
        if self.world.device.type == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = _visible(self.world.device)
        else:
            # Not a share of the machine's memory, and the cores that the job has.
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        self._process = subprocess.Popen(
            # Isolated: nothing of this package or of its environment is imported there.
            [self.program, "-I", "-W", "ignore", vllm_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            # Ctrl-C is for this process, which ends it.
            start_new_session=True,
        )
        self._send(
            {
                "model": str(self._fitting(vocabulary)),
                "dtype": DTYPES[self.precision],
                "length": length,
                "memory": self.memory,
            }
        )
        self.version = self._receive()["version"]

    def _fitting(self, vocabulary: int) -> Path:
        """A folder whose model has exactly the tokenizer's entries, so that no other can be drawn."""
        if self._config().get_text_config().vocab_size == vocabulary:
            return self.folder
        model = load_model(self.folder, self.precision)
        # transformers lets only rank 0 write, into a folder of all; this one is this rank's.
        model.__dict__["should_save_on_this_rank"] = lambda is_main_process: True
        with whole_folder(self.scratch) as partial:
            save_cut(model, vocabulary, partial)
        return self.scratch

    def _config(self) -> Any:
        return AutoConfig.from_pretrained(self.folder, local_files_only=True)

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # What it last said is still to be read.
            self._receive()

    def _receive(self) -> Any:
        """The next line; UserError if it is a problem or the process has ended."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise UserError(
                f"{self.folder}: vLLM ended with status {status} (its messages are above, or in the log); "
                "responses so far are kept, run it again to resume"
            )
        value = json.loads(line)
        if isinstance(value, dict) and "error" in value:
            raise UserError(f"{self.folder}: vLLM: {value['error'][:300]}")
        return value


def _visible(device: torch.device) -> str:
    """What CUDA_VISIBLE_DEVICES must be so that only this device is seen."""
    index = device.index or 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[index] if visible else str(index)
