"""A trainer of TRL, step by step on demand, in TRL's environment, importing nothing of the package.

`python -m benchmarks.trl_worker TRAINER FOLDER PRECISION`: TRAINER is minillm or distillation; FOLDER has
student/, teacher/, tokenizer/ and prompts.json.  For each line on standard input it makes one optimizer step
(sampling included) and prints {"seconds": ..., "above": ...}; `above` is the step's peak memory in MB minus
what is held after the first step.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402

from benchmarks.meter import Meter  # noqa: E402

FOREVER = 10_000


class OnDemand(TrainerCallback):
    """Waits for a line before each step, and prints what the step took."""

    def __init__(self) -> None:
        self.meter, self.resident = Meter(), 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The other side is done.
        if not sys.stdin.readline():
            os._exit(0)
        self.meter.begin()
        self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.perf_counter() - self.begin
        peak = self.meter.peak()
        first = not self.resident
        self.resident = self.resident or self.meter.held()
        print(json.dumps({"seconds": seconds, "above": 0.0 if first else peak - self.resident}), flush=True)


# Module, name of trainer and config, and what only this trainer takes.
TRAINERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "minillm": (
        "trl.experimental.minillm", "MiniLLM",
        {"num_generations": 1, "num_iterations": 1, "length_normalization": True, "loss_type": "bnpo",
         "beta": 0.0},
    ),
    "distillation": ("trl", "Distillation", {"beta": 1.0}),
}  # fmt: skip


def main(trainer: str, folder: Path, precision: str) -> None:
    module, name, only = TRAINERS[trainer]
    trl = importlib.import_module(module)
    request = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    batch, bf16 = len(request["prompts"]), precision == "bf16"
    if trainer == "minillm":
        only["gamma"] = request["gamma"]
    config = getattr(trl, f"{name}Config")(
        output_dir=str(folder / "trl"), max_steps=FOREVER, per_device_train_batch_size=batch,
        gradient_accumulation_steps=1, max_completion_length=request["response"], temperature=1.0,
        learning_rate=5e-6, adam_beta2=0.95, weight_decay=1e-6, use_cpu=not torch.cuda.is_available(),
        bf16=bf16, gradient_checkpointing=False, report_to="none", logging_strategy="no", save_strategy="no",
        disable_tqdm=True, **only,
    )  # fmt: skip
    student = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(
        folder / "teacher", dtype=torch.bfloat16 if bf16 else torch.float32
    )
    made = getattr(trl, f"{name}Trainer")(
        model=student, teacher_model=teacher, args=config, processing_class=tokenizer, callbacks=[OnDemand()],
        train_dataset=Dataset.from_dict({"prompt": request["prompts"]}),
    )  # fmt: skip
    made.train()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
