"""The sections of a configuration: frozen dataclasses, strictly loaded; here models, training and style.

docs/configuration.md is made from their descriptions.

data.py has the sections of data, onpolicy.py that of the on-policy phase, launch.py launch values,
measurements/ the sections of what is measured in addition to ROUGE-L, estimators.py that of the study of
estimators, experiment.py the whole.  Stages that train do not import measurements/, so a new measurement
re-runs no training.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema
from pydantic.dataclasses import dataclass

from minillm.config.adapter import Adapter
from minillm.config.onpolicy import OnPolicy
from minillm.config.sampling import Sampling
from minillm.config.strict import STRICT, Count, Name, Natural, NonNegative, Positive, Share, whole_schema

Precision = Literal["fp32", "bf16", "fp16"]


# --- training and models
@dataclass(frozen=True, config=STRICT)
class Training:
    """Supervised training with AdamW."""

    lr: Positive = Field(
        description="Learning rate after warm-up. The paper searches 5e-4, 1e-4 and 5e-5 below 1.3B "
        "parameters, 5e-5, 1e-5 and 5e-6 from there on.",
    )
    epochs: Positive = Field(
        description="Passes over the training rows; fractions are allowed. The paper: 20 below 1.3B "
        "parameters, 10 from there on.",
    )
    batch: Count = Field(
        default=32,
        description="Global batch size in rows: gradient accumulation follows from it, `launch.micro_batch` "
        "and the number of processes. The paper searches 32 and 64.",
    )
    loss: Literal["ce", "kd", "hpd"] = Field(
        default="ce",
        description="`ce`: cross-entropy on the responses. `kd`: mixed with forward KL to the teacher. "
        "`hpd`: hybrid policy distillation (HPD), on each response's token and one that the student draws in "
        "its place.",
    )
    kd_ratio: Share = Field(
        default=0.5,
        description="Weight of the forward KL with `loss: kd`; cross-entropy has the rest. The paper: 0.5.",
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="cosine",
        description="Learning rate after warm-up: constant, or a cosine from `lr` down to `min_lr`.",
    )
    min_lr: NonNegative = Field(default=1e-7, description="Learning rate at the end of the cosine schedule.")
    warmup: Natural = Field(
        default=0,
        description="Optimizer steps over which the learning rate rises linearly to `lr`.",
    )
    weight_decay: NonNegative = Field(
        default=0.01,
        description="AdamW's weight decay, on weight matrices only: biases and norms have none.",
    )
    betas: tuple[Share, Share] = Field(
        default=(0.9, 0.999),
        description="AdamW's decay rates of the running means of gradient and squared gradient.",
    )
    clip_norm: Positive = Field(
        default=1.0,
        description="Gradients are scaled down to this global L2 norm if theirs is larger.",
    )
    dropout: bool = Field(default=True, description="Keep the model's own dropout active during updates.")
    evaluations: Count = Field(
        default=1,
        description="Dev evaluations over the whole run, evenly spaced, the last one at the end. The best of "
        "these checkpoints is kept; the paper chooses by dev ROUGE-L.",
    )
    dev_rows: Natural = Field(default=0, description="Evaluate on the first so many dev rows; 0: all.")


@dataclass(frozen=True, config=STRICT)
class Pseudo:
    """The teacher's responses to training prompts, which SeqKD trains on."""

    rows: Natural = Field(default=0, description="Answer the first so many training prompts; 0: all.")
    dev_rows: Natural = Field(
        default=100,
        description="Answer the first so many dev prompts too, to measure the loss of SeqKD; 0: all.",
    )
    sampling: Sampling = Field(default_factory=Sampling, description="How the teacher's responses are drawn.")


@dataclass(frozen=True, config=STRICT)
class Model:
    """A base model, or a finished one that is taken over (`checkpoints`)."""

    source: Literal["scratch", "folder", "hub", "gguf", "pruned", "server"] = Field(
        description="`scratch`: `architecture` with random weights, pre-trained by `training` on the plain "
        "text. `folder`, `hub`, `gguf`: loaded from `path`. `pruned`: some `layers` of the base model "
        "`parent`, healed by `training`. `server`, only in `checkpoints`: a teacher that answers at the "
        "address `path`, for SeqKD and test sets (docs/running.md).",
    )
    tokenizer: Name = Field(
        description="Entry of `tokenizers`. Teacher and student of a pair must share it; with "
        "`data.template: chat` they must share its vocabulary.",
    )
    family: str = Field(
        default="",
        description="Name of the model family in tables, such as `GPT-2`. With `size` it also finds the "
        "model's published numbers.",
    )
    size: str = Field(default="", description="Size in tables, such as `120M`.")
    path: str = Field(
        default="",
        description="Folder, hub repository or GGUF file, as in a tokenizer's path; with `source: server` an "
        "address of OpenAI's form, `http://HOST:PORT/v1`, without a key in it.",
    )
    revision: str = Field(
        default="",
        description="Commit, tag or branch of the hub repository; empty is `main`.",
    )
    served_name: str | None = Field(
        default=None,
        description="With `source: server`: the model's name there.",
    )
    key_variable: str | None = Field(
        default=None,
        description="With `source: server`: the environment variable that its key is read from; empty if it "
        "wants none.",
    )
    architecture: dict[str, Any] = Field(
        default_factory=dict,
        description="With `source: scratch`: `model_type` and the arguments of that transformers "
        "configuration, such as `hidden_size`.",
    )
    parent: str = Field(
        default="",
        description="With `source: pruned`: the base model whose layers are taken.",
    )
    layers: tuple[Natural, ...] = Field(
        default=(),
        description="With `source: pruned`: decoder layers of the parent to keep, counted from 0.",
    )
    answers_of: Name | None = Field(
        default=None,
        description="With `source: pruned`: heal on this teacher's answers to the training prompts as well, "
        "those of `stages.pseudo`; empty: only on the plain text and the training rows.",
    )
    licence: str | None = Field(
        default=None,
        description="Licence as the hub names it, such as `apache-2.0`, for model cards of what is made from "
        "it; empty: as the model's own card says.",
    )
    gated: bool | None = Field(
        default=None,
        description="Whether the hub asks for an accepted licence before it gives the files.",
    )
    training: Training | None = Field(
        default=None,
        description="How a `scratch` model is pre-trained on the plain text, or a `pruned` one healed: by "
        "distillation from its parent on the plain text and the training rows. Other sources have none.",
    )
    adapter: Adapter | None = Field(
        default=None,
        description="Train a low-rank adapter (LoRA) in place of all weights whenever the model is "
        "fine-tuned, as a teacher or as a student (docs/adapters.md); empty: all weights.",
    )


# --- the whole experiment
@dataclass(frozen=True, config=STRICT)
class Pair:
    """One teacher and the students that are distilled from it."""

    teacher: Name = Field(description="Entry of `models`, fine-tuned on the training rows first.")
    students: tuple[Name, ...] = Field(
        min_length=1, description="Entries of `models`, each trained by each method."
    )
    methods: tuple[Name, ...] = Field(
        default=(),
        description="Methods of this pair; empty takes the run's `methods`.",
    )


@dataclass(frozen=True, config=STRICT)
class Stages:
    """Settings of the training stages for all models; `per_model` replaces single keys for one model."""

    teacher: Training = Field(description="Fine-tuning of the teachers on the training rows.")
    sft: Training = Field(
        description="Fine-tuning of the students without a teacher. The checkpoint with the lowest dev loss "
        "is where MiniLLM starts.",
    )
    kd: Training = Field(description="Word-level distillation (KD) on the training rows; set `loss: kd`.")
    seqkd: Training = Field(
        description="Sequence-level distillation (SeqKD): cross-entropy on the teacher's responses.",
    )
    pseudo: Pseudo = Field(default_factory=Pseudo, description="The teacher's responses for SeqKD.")
    minillm: Annotated[dict[str, Any], WithJsonSchema(whole_schema(OnPolicy))] = Field(
        default_factory=dict,
        description="The on-policy phase of MiniLLM and its variants. Keys that are not set come from the "
        "preset `semantics`, and only then from the defaults.",
    )


@dataclass(frozen=True, config=STRICT)
class Style:
    """Appearance of the figures. A change redraws them and re-runs nothing else."""

    width: Positive = Field(default=7.0, description="Width of a figure, in inches.")
    height: Positive = Field(default=3.2, description="Height of a figure with one row of panels, in inches.")
    dpi: Count = Field(default=200, description="Resolution of PNG files, in dots per inch.")
    font_size: Positive = Field(default=9.0, description="Font size in points.")
    palette: dict[str, str] = Field(
        default_factory=dict,
        description="Colours by method, such as `{minillm: '#D55E00'}`; other methods keep theirs.",
    )
