"""A Python that starts at once: forked from a process that has imported torch, transformers and DeepSpeed.

A stage computes for a second in these tests and imports libraries for five. Nothing of this package is
imported before the fork, so that each process takes it from where its PYTHONPATH says. Tests of what a
process imports, or writes while it does, start a real one.

    warm_python.py SOCKET    serves until it is ended
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "torch.distributed",
    "torch.distributed.run",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.loss.loss_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "deepspeed",
    "scipy.stats",
    "rouge_score.rouge_scorer",
    "pydantic",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
)


@contextlib.contextmanager
def warm_python() -> Iterator[str]:
    """A program that takes the place of `python` in a command, for -m MODULE, -c CODE and a script.

    One thread computes in each process. Signals go through to the process that works: SIGTERM and SIGINT as
    they are, SIGKILL when the connection breaks.
    """
    # Short, because the path of a socket may not be longer than a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="warm"))
    program = folder / "python"
    program.write_text(f"#!{sys.executable} -IS\n" + Path(__file__).with_name("warm_client.py").read_text())
    program.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # What the libraries read when they are imported, as a stage has set it by then; CUDA is not touched
    # before a fork.
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    with open(folder / "log", "w") as log:
        command = [sys.executable, __file__, str(folder / "socket")]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        while not (folder / "socket").exists():
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        yield str(program)
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


def serve(path: str) -> dict[str, Any]:
    """Listen at `path`; returns in each process that is to run something, with what a client asks for."""
    import torch

    if not torch.cuda.is_available():
        # As the engine does it before DeepSpeed reads it.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in LIBRARIES:
        importlib.import_module(name)
    # So that no collection writes to, and thereby copies, the pages of the libraries.
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return attend(connection)
        connection.close()


def attend(connection: socket.socket) -> dict[str, Any]:
    """Read the request and fork the process that runs it, in which this returns.

    The process that stays watches over it and hands its status back.
    """
    header, files, _, _ = socket.recv_fds(connection, 8, 3)
    length, body = int.from_bytes(header, "big"), b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    worker = os.fork()
    if not worker:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        # The server's own streams know whether its files can be sought, not whether these can.
        sys.stdout, sys.stderr = (
            open(number, "w", encoding="utf-8", errors=errors, buffering=1, closefd=False)  # noqa: SIM115
            for number, errors in ((1, "strict"), (2, "backslashreplace"))
        )
        request: dict[str, Any] = json.loads(body)
        return request
    for file in files:
        os.close(file)
    ended = os.pidfd_open(worker)
    while True:
        ready = select.select([ended, connection], [], [])[0]
        if ended in ready:
            break
        os.kill(worker, (connection.recv(1) or bytes([signal.SIGKILL]))[0])
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(str(status).encode())
    os._exit(0)


def run(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """As `python` runs it."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    while arguments[0] == "-u":
        arguments = arguments[1:]
    module, code = arguments[0] == "-m", arguments[0] == "-c"
    first = folder if module or code else os.path.dirname(os.path.abspath(arguments[0]))
    # The server's own first entry is the folder of this file.
    sys.path[:1] = [first, *paths]
    sys.argv = arguments[1:] if module or code else arguments
    if module:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif code:
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def status_of(request: dict[str, Any]) -> int:
    """Run it; its exit status, with what an error prints."""
    try:
        run(**request)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    status = status_of(serve(sys.argv[1]))
    # Not taken apart: that would copy every page of the libraries.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
