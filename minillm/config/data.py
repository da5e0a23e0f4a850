"""The sections `tokenizers`, `datasets` and `data`: where rows come from, and how they become tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.chat import Chat
from minillm.config.strict import STRICT, Count, Name, Natural
from minillm.config.teaching import PROMPTS


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
        "either kind in turn `both_train` or `both_dev`; the classification tasks `colour`, `kind`, "
        "`open_place` and `open_total`; as "
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
