"""Where a model comes from: provenance.json, next to its weights."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from minillm.files import PROVENANCE, hashes, model_content, settings_hash, write_json
from minillm.runtime.card import README, model_card

PACKAGES = ("minillm", "torch", "transformers", "deepspeed", "datasets", "tokenizers", "numpy", "snakemake")


def write(
    folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], run: Mapping[str, Any]
) -> None:
    """Write provenance.json: settings, content hashes of inputs and result, `run` (launch values, time).

    All other files of the folder have to be there: the hash of each is recorded.  A model card follows, which
    is not recorded.
    """
    found, adapted = hashes(folder), settings.get("adapter") is not None
    record = {
        "content": model_content(found),
        "settings": settings,
        "settings_sha256": settings_hash(settings),
        "inputs": inputs,
        "git": revision(),
        "command": command(),
        "packages": {name: _version(name) for name in (*PACKAGES, *(["peft"] if adapted else []))},
        "processor": processor(),
        "peak_memory_mb": peak_memory_mb(),
        **run,
        "files": found,
    }
    write_json(folder / PROVENANCE, record)
    (folder / README).write_text(model_card(json.loads(json.dumps(record))), encoding="utf-8")


def command() -> str:
    """The command that runs here; "" for a program that only imports the package."""
    ours = Path(sys.argv[0]).name in ("minillm", "__main__.py")
    return shlex.join(["minillm", *sys.argv[1:]]) if ours else ""


def revision() -> str:
    """Git revision of the package's checkout, marked if files differ; "unknown" outside a checkout."""
    # The whole package's folder, whichever room this module is in.
    here = str(files("minillm"))
    tracked = ["git", "ls-files", "--error-unmatch", "__init__.py"]
    try:
        # An installed package may be in an environment inside somebody else's checkout.
        subprocess.run(tracked, cwd=here, capture_output=True, check=True)
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno", "."],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (" with changes" if changed else "")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def processor() -> str:
    """The GPU's name, or this CPU's architecture and vector instructions: others round differently."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def peak_memory_mb() -> dict[str, float]:
    """Peak memory of this process so far, in MB: resident, and on the GPU if there is one."""
    peak = {"resident": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
    if torch.cuda.is_available():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak
