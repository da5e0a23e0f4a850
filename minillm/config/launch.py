"""Launch values: how a stage is run, not what it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Count, Natural, NonNegative

# Seconds that torchrun gives the processes to save after a SIGTERM; its default is 30.
KILLED_AFTER = 110


@dataclass(frozen=True, config=STRICT)
class Launch:
    """How a stage is run, not what it computes: recorded next to the result; a change re-runs nothing."""

    zero: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="DeepSpeed's ZeRO stage in training: 1 shards the optimizer state over the processes, 2 "
        "also the gradients, 3 also the weights.",
    )
    micro_batch: Count = Field(
        default=8,
        description="Most rows that a process computes at once in training. The global batch stays what it "
        "is: gradient accumulation follows.",
    )
    micro_tokens: Natural = Field(
        default=0,
        description="Most positions that a process computes at once in training, padding included; 0: no "
        "limit. Set it to what the memory holds and `micro_batch` high to compute many short rows at a time.",
    )
    eval_batch: Count = Field(
        default=32,
        description="Like `micro_batch`, without gradients: sampling and dev sets.",
    )
    eval_tokens: Natural = Field(
        default=0,
        description="Like `micro_tokens`, without gradients; a row counts with its longest response.",
    )
    processes: Count = Field(
        default=1,
        description="Processes on the machine, one per GPU. More than one are started by `torchrun`; on a "
        "cluster the number of GPUs of the job takes its place. Must divide the global batches.",
    )
    offload: bool = Field(
        default=False,
        description="Keep the optimizer state in the CPU's memory, with ZeRO 2 and 3.",
    )
    shard_teacher: bool = Field(
        default=False,
        description="Shard the teacher's weights over the processes during updates, as ZeRO 3 does the "
        "student's. Sampling and dev sets still gather them whole on each GPU.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third more time.",
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        default="auto",
        description="How transformers computes attention in updates; `auto` leaves it to transformers. On a "
        "CPU in bf16 `eager` is the faster one, and takes more memory.",
    )
    compile: bool = Field(
        default=False,
        description="Let torch compile the losses and, in updates, the decoder blocks: fewer passes over "
        "logits and hidden states, ten seconds to half a minute at the start. Needs a C++ compiler, on a GPU "
        "Triton.",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="Capture steps of sampling as CUDA graphs, which start all of their kernels at once. "
        "Means nothing on a CPU.",
    )
    teacher_cache: bool = Field(
        default=True,
        description="Keep the teacher's hidden states: of samples for the inner epochs (MiniLLM), of fixed "
        "rows for later epochs (KD, healing). Otherwise the teacher reads them again each time.",
    )
    save_every: Count = Field(
        default=100,
        description="Optimizer steps between checkpoints; every dev evaluation saves one too.",
    )
    save_minutes: NonNegative = Field(
        default=0.0,
        description="Minutes between checkpoints, counted from the end of the last one, instead of "
        "`save_every`; 0: off. For large models: a checkpoint has 12 bytes per trained parameter.",
    )
    log_every: Count = Field(default=10, description="Optimizer steps between lines of `metrics.jsonl`.")
    gradient_variance: bool = Field(
        default=False,
        description="In on-policy training, log how much the gradient varies: an estimate from the "
        "micro-batches of each logged update, which needs two of them. Costs one more read of each gradient.",
    )
    initial_kl: bool = Field(
        default=False,
        description="In on-policy training, log the KL to the initial student at dev evaluations. Keeps its "
        "weights on each device (with an adapter only the adapter), as `init_kl` does.",
    )
    tracker: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        default=(),
        description="Trackers that get the lines of `metrics.jsonl` as well, under `results/<run>/trackers`; "
        "`trackio` and `wandb` are installed separately. Nothing leaves the machine unless the trackers' own "
        "variables say so (`WANDB_MODE=online`, `TRACKIO_SPACE_ID`).",
    )
    vllm_memory: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="With `backend: vllm`: share of a GPU's memory that vLLM takes, weights included. For "
        "rollouts less: what the training leaves.",
    )
    patience: Count = Field(
        default=600,
        description="Seconds that a process may show no sign of life before the others end the stage and "
        "name it, with its last step.",
    )
