"""The sections of a configuration: frozen dataclasses, strictly loaded.

docs/configuration.md is made from their descriptions.

measurements/ has the sections of what is measured in addition to ROUGE-L, onpolicy.py that of the on-policy
phase, estimators.py that of the study of estimators, experiment.py the whole.  Stages that train do not
import measurements/, so a new measurement re-runs no training.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema
from pydantic.dataclasses import dataclass

from minillm.config.adapter import Adapter
from minillm.config.chat import Chat
from minillm.config.onpolicy import OnPolicy
from minillm.config.sampling import Sampling
from minillm.config.strict import STRICT, Count, Name, Natural, NonNegative, Positive, Share, whole_schema
from minillm.config.teaching import PROMPTS

Precision = Literal["fp32", "bf16", "fp16"]


# --- tokenizers and data sets
@dataclass(frozen=True, config=STRICT)
class Tokenizer:
    """Where a tokenizer comes from."""

    source: Literal["train", "folder", "hub", "gguf"] = Field(
        description="`train`: a byte-level BPE trained on the plain text of `data.corpus`. `folder`, `hub`, "
        "`gguf`: loaded from `path`.",
    )
    path: str = Field(
        default="",
        description="A folder, a repository of the Hugging Face hub or a GGUF file. `package:NAME/FILE` is a "
        "file inside an installed Python package and `$MINILLM_DATA/...` one below the folder that this "
        "environment variable names.",
    )
    revision: str = Field(
        default="",
        description="Commit, tag or branch of the hub repository; empty is `main`.",
    )
    vocabulary: int = Field(
        default=1024,
        ge=260,
        description="Number of tokens of a tokenizer with `source: train`.",
    )
    # Null is not written into settings files (files.NEWER).
    chat: Chat | None = Field(
        default=None,
        description="With `data.template: chat`, how rows are rendered for this tokenizer's models; empty: "
        "by its own template.",
    )


@dataclass(frozen=True, config=STRICT)
class Dataset:
    """Instruction data, plain text for the pre-training corpus, or rows for classification (docs/data.md)."""

    source: Literal["embedded", "folder", "hub"] = Field(
        description="`embedded`: the generator of minillm/data/embedded_corpus.py, which downloads nothing. "
        "`folder`: a local file. `hub`: a data set of the Hugging Face hub.",
    )
    path: str = Field(
        default="",
        description="`folder`: a file of rows (`instruction`, `input`, `output`, or `messages`): JSON lines, "
        "a JSON array, CSV or Parquet, or for plain text a `.txt` file with one document per line or rows "
        "with `text`; its ending says which, and whether it is compressed (docs/data.md). `package:` and "
        "`$MINILLM_DATA/` work as in a tokenizer's path, and `subsets:NAME` takes an entry of `subsets`. "
        "`hub`: `OWNER/NAME`, or `OWNER/NAME/FILE` for one such file of the repository.",
    )
    subset: str = Field(
        default="",
        description="Subset of a hub data set (its configuration): the second argument of "
        "`datasets.load_dataset`, such as `sst2` of GLUE.",
    )
    split: str = Field(
        default="",
        description="Split of a hub data set; empty is `train`. For `embedded`: `train`, `dev`, `test` or "
        "`test_hard`; of the tasks with many right answers `open_train`, `open_dev` or `open_test`; rows of "
        "either kind in turn `both_train` or `both_dev`; the classification tasks `colour` and `kind`; as "
        "plain text `open_text` and `both_text`, and any other split for that of the first.",
    )
    forms: Literal[1, 2, 4, 8, 16] | None = Field(
        default=None,
        description="`embedded`, splits `open_*` and `both_*`: number of right answers of each prompt; empty "
        "is 8.",
    )
    revision: str = Field(
        default="",
        description="Commit, tag or branch of the hub repository; empty is its default branch.",
    )
    start: Natural = Field(
        default=0,
        description="Rows to skip at the beginning of the source, before any are dropped.",
    )
    rows: Natural = Field(
        default=0,
        description="Rows to read after `start`, in the order of the source; 0: all (`embedded`: 1000).",
    )
    sample: Natural = Field(
        default=0,
        description="Size of a random subset of the rows that filtering leaves, drawn with `data.seed`; 0: "
        "all. Plain text ignores it.",
    )
    fields: dict[str, str] = Field(
        default_factory=dict,
        description="Columns of the source under other names than ours: `{instruction: question}` reads the "
        "instruction from the column `question`. Ours are `instruction`, `input`, `output` and `category`, "
        "or `messages`; for plain text `text`. `options` names the column with the options of a "
        "multiple-choice question, which is read only if it is named (docs/data.md).",
    )
    instruction: str | None = Field(
        default=None,
        min_length=1,
        description="Instruction of every row, for a source that has none, such as documents with their "
        "summaries.",
    )
    where: dict[str, str] | None = Field(
        default=None,
        description="Keep only the rows whose columns, under the source's names, have these values: "
        "`{category: summarization}`. Applied to the slice of `start` and `rows`, before `sample`.",
    )
    label: str = Field(default="", description="Name in tables and figures; empty is the name of the entry.")


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
class Data:
    """Which data sets are used, and how rows become tokens. Lengths are in tokens of the pair's tokenizer."""

    train: Name = Field(description="Entry of `datasets` with the training rows. The paper: Dolly.")
    dev: Name = Field(description="Entry of `datasets` with the dev rows, by which checkpoints are chosen.")
    tests: tuple[Name, ...] = Field(
        min_length=1,
        description="Entries of `datasets` that are test sets, in the order of the main table. The paper: "
        "DollyEval, SelfInst, VicunaEval, S-NI and UnNI.",
    )
    corpus: str = Field(
        default="",
        description="Entry of `datasets` with plain text, for the pre-training loss (`lm_coef`), tokenizers "
        "and models that are trained here; empty if nothing needs any. The paper: OpenWebText for GPT-2, "
        "RoBERTa's training corpus for the other families.",
    )
    template: Literal["alpaca", "plain", "chat"] = Field(
        default="alpaca",
        description="Prompt template: `alpaca` is the paper's; `plain` has only instruction, input and a "
        "heading, for models with short contexts; `chat` is each model's own chat template "
        "(`tokenizers.NAME.chat`).",
    )
    # Null is not written into settings files (files.NEWER).
    turns: Literal["last", "all"] | None = Field(
        default=None,
        description="Training rows with several answers of the assistant: `last` trains on the last one, "
        "`all` on each, as a row of its own with the turns before it as its prompt. Empty is `last`.",
    )
    max_prompt: Count = Field(
        default=256,
        description="Longest prompt; rows with a longer one are dropped and counted. The paper: 512 for "
        "prompt and response together (D18 in docs/method.md).",
    )
    max_response: Count = Field(
        default=256,
        description="Longest training response, EOS included; longer ones are cut and then have no EOS. Dev "
        "responses may be as long.",
    )
    corpus_length: int = Field(
        default=512,
        ge=8,
        description="Length of the chunks into which the plain text is cut. The paper: 512.",
    )
    seed: int = Field(
        default=0,
        description="Seed of random subsets (`sample` of a data set) and of the prompts in Table 8.",
    )
    # In no settings file: a stage gets only the text that it needs.
    prompts: dict[Name, str] = Field(
        default_factory=dict,
        description="Further prompts of the training and dev rows, which a teacher may read in place of the "
        "student's (`teacher.prompt`): a text by name, with `{question}` (or `{instruction}` and `{input}`) "
        "and `{output}`, the gold answer. There is one already, `demonstration`.",
    )

    @property
    def every_prompt(self) -> dict[str, str]:
        """Those of `prompts`, and those that there always are."""
        return {**PROMPTS, **self.prompts}


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
