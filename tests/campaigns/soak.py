"""What grows in a long on-policy stage: memory, open descriptors, disk, time.

`python tests/campaigns/soak.py [STEPS]` (2,000; 5 to 10 minutes on one core) runs the stage `minillm` on tiny
models with one thread, and reads once every 100 steps what the system knows of its process.  The exit status
is 1 if resident memory grows by 1 MB or more per 100 steps after step 500 (after half of a shorter run), or
the number of descriptors changes then.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from minillm.config.data import Dataset, Tokenizer
from minillm.config.onpolicy import OnPolicy
from minillm.config.presets import PRESETS
from minillm.config.stage_settings import DataSettings, OnPolicySettings
from minillm.data import prepare
from minillm.models.loading import load_tokenizer, save_model
from minillm.runtime import provenance

EVERY = 100
SETTLED = 500
# MB per 100 steps.
MOST = 1.0
COLUMNS = ("step", "resident MB", "descriptors", "disk MB", "s per step")


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the process and its folder hold after a step; `seconds` of training so far."""

    step: int
    resident: float
    descriptors: int
    disk: float
    seconds: float


def inputs(folder: Path, steps: int) -> list[str]:
    """Data, two models and settings in `folder`; the command of a stage of more than `steps` steps."""
    data = DataSettings(
        stage="data",
        tokenizer=Tokenizer(source="train", vocabulary=400),
        train=Dataset(source="embedded", split="train", rows=240),
        dev=Dataset(source="embedded", split="dev", rows=16),
        corpus=Dataset(source="embedded", split="text", rows=200),
        template="plain",
        max_prompt=80,
        max_response=16,
        corpus_length=64,
        seed=0,
    )
    prepare.run_stage(data, out=folder / "data")
    tokenizer = load_tokenizer(folder / "data/tokenizer")
    for seed, (name, layers) in enumerate({"init": 1, "teacher": 2}.items()):
        torch.manual_seed(seed)
        ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        shape = GPT2Config(
            n_embd=32, n_layer=layers, n_head=2, n_positions=128, vocab_size=len(tokenizer), **ends
        )
        (folder / name).mkdir()
        save_model(GPT2LMHeadModel(shape), tokenizer, folder / name)
        provenance.write(folder / name, {}, {}, {})
    # Four collections of samples a hundred steps, a dev set every two hundred.
    sizes = {"rollouts": 50, "batch": 8, "inner_epochs": 4, "max_tokens": 16, "lm_batch": 4, "dev_rows": 8}
    per_collection = sizes["inner_epochs"] * (sizes["rollouts"] // sizes["batch"])
    # A full buffer of replayed samples, and a share of gold rows: all that a loop can keep.
    kinds = {"replay": 32, "student_share": 0.9, "adaptive": True}
    # Still at work when the last reading is taken.
    counts = {"collections": steps // per_collection + 8, "evaluations": max(1, steps // 200)}
    training = OnPolicy(**(PRESETS["paper"] | {"semantics": "paper"} | sizes | kinds | counts))
    settings = OnPolicySettings("minillm", "minillm", "student", "teacher", 10, "fp32", training)
    (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)), encoding="utf-8")
    paths = {name: str(folder / name) for name in ("data", "init", "teacher", "out", "checkpoints")}
    launch = json.dumps({"log_every": 10, "save_every": EVERY})
    command = [sys.executable, "-m", "minillm", "minillm", "--launch", launch]
    command += ["--config", str(folder / "settings.json")]
    return [*command, *(part for name, path in paths.items() for part in (f"--{name}", path))]


def newest(folder: Path) -> tuple[int, float]:
    """(step, seconds of training) of the last whole line of the run's metrics.jsonl; (0, 0.0) without one."""
    for path in folder.glob("checkpoints/*/metrics.jsonl"):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        if lines:
            entry = json.loads(lines[-1])
            return entry["step"], entry["seconds"]
    return 0, 0.0


def size(folder: Path) -> float:
    """MB in a folder that changes meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total / 2**20


def read(process: int, folder: Path, step: int, seconds: float) -> Reading:
    """What /proc and the disk say now."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    descriptors = []
    # A file that is just being written is open for a moment.
    for _ in range(5):
        descriptors.append(len(os.listdir(f"/proc/{process}/fd")))
        time.sleep(0.02)
    return Reading(
        step,
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        min(descriptors),
        size(folder / "checkpoints"),
        seconds,
    )


def watch(command: list[str], folder: Path, steps: int) -> list[Reading]:
    """Readings every 100 steps of the running stage up to `steps`; SystemExit if it ends before."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    readings: list[Reading] = []
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **threads})
        try:
            while process.poll() is None and len(readings) < steps // EVERY:
                step, seconds = newest(folder)
                if step >= EVERY * (len(readings) + 1):
                    readings.append(read(process.pid, folder, step, seconds))
                    print(f"step {step}: {readings[-1].resident:.1f} MB", file=sys.stderr, flush=True)
                time.sleep(0.05)
        finally:
            ended = process.poll()
            if ended is None:
                process.terminate()
                process.wait()
    if ended is not None:
        text = (folder / "log").read_text(encoding="utf-8")[-2000:]
        raise SystemExit(f"the stage ended with status {ended} after {len(readings)} readings:\n{text}")
    return readings


def slope(readings: list[Reading], values: list[float]) -> float:
    """Change per 100 steps, by least squares."""
    return float(np.polyfit([r.step for r in readings], values, 1)[0]) * 100


def report(readings: list[Reading], steps: int) -> bool:
    """Print the table with slopes; whether memory and descriptors are bounded."""
    print("  ".join(f"{name:>12}" for name in COLUMNS))
    before = Reading(0, 0, 0, 0, 0)
    for r in readings:
        pace = (r.seconds - before.seconds) / (r.step - before.step)
        print(f"{r.step:12d}  {r.resident:12.1f}  {r.descriptors:12d}  {r.disk:12.2f}  {pace:12.3f}")
        before = r
    settled = [r for r in readings if r.step >= min(SETTLED, steps / 2)]
    if len(settled) < 2:
        raise SystemExit(f"{steps} steps are too few to say anything: at least {4 * EVERY}")
    grows = slope(settled, [r.resident for r in settled])
    disk = slope(settled, [r.disk for r in settled])
    # Seconds of training so far bend upward if a step takes longer and longer.
    bend = float(
        np.polyfit([r.step for r in settled], [r.seconds for r in settled], min(2, len(settled) - 1))[0]
    )
    descriptors = sorted({r.descriptors for r in settled})
    print(
        f"from step {settled[0].step}, per {EVERY} steps: resident {grows:+.3f} MB, disk {disk:+.3f} MB, "
        f"time of a step {2e5 * bend:+.2f} ms; descriptors {descriptors}"
    )
    held = grows < MOST and len(descriptors) == 1
    print(f"under {MOST:g} MB per {EVERY} steps, descriptors constant: {'yes' if held else 'NO'}")
    return held


def main(steps: int = 2000) -> int:
    """Run and report; 0 if what is promised holds, else 1."""
    with tempfile.TemporaryDirectory(prefix="minillm-soak-") as name:
        folder = Path(name)
        return 0 if report(watch(inputs(folder, steps), folder, steps), steps) else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
