"""Sections of a configuration for what is measured beside ROUGE-L; each has defaults under which nothing is measured."""

from __future__ import annotations

import string
from collections.abc import Collection
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Count, Name, Natural, Positive, hint
from minillm.errors import UserError

Edges = Annotated[tuple[Natural, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class ExposureBias:
    """ExAccErr, the excess error that accumulates on a student's own prefixes (docs/evaluation.md, Figure 6)."""

    tests: tuple[Name, ...] = Field(
        default=(),
        description="Test sets to measure; empty measures nothing. The paper: DollyEval.",
    )
    prompts: Natural = Field(
        default=0,
        description="Size of a random subset of each test set's prompts, drawn with `seed`; 0: all.",
    )
    responses: Count = Field(
        default=10,
        description="Responses of student and teacher to each prompt. The paper: 10 (D22 in docs/method.md).",
    )
    max_tokens: Count = Field(default=256, description="Longest response, in tokens, EOS included.")
    finished: Literal["alive", "zero"] = Field(
        default="alive",
        description="The mean at a position is over the responses that reach it (`alive`), or over all of "
        "them, those that have ended counting 0 (`zero`).",
    )
    semantics: Literal["paper", "released"] = Field(
        default="paper",
        description="`paper`: from the first token on, samples without filters. `released`: as the published "
        "script computes it, from the second token on, with its 6-gram block (D23).",
    )
    resamples: Count = Field(
        default=1000,
        description="Bootstrap resamples over prompts, for the error band.",
    )
    level: float = Field(default=0.95, gt=0, lt=1, description="Confidence level of the band.")
    seed: Natural = Field(default=0, description="Seed of the prompts, the samples and the bootstrap.")


@dataclass(frozen=True, config=STRICT)
class Lengths:
    """ROUGE-L by the length of the first reference in tokens (Figures 7 and 15)."""

    tests: tuple[Name, ...] = Field(
        default=(),
        description="Entries of `datasets` to measure; they need not be test sets. Figure 7 shows those that "
        "`figure15` does not name (in the paper S-NI). Empty measures nothing.",
    )
    figure15: tuple[Name, ...] = Field(
        default=(),
        description="Those of `tests` that Figure 15 shows (in the paper UnNI).",
    )
    edges: Edges = Field(
        default=(5, 10),
        description="Last length of each bucket but the open one, rising: e1 < e2 give [0, e1], [e1 + 1, e2] "
        "and [e2 + 1, inf). The paper: 5 and 10.",
    )
    per_test: dict[Name, Edges] = Field(
        default_factory=dict,
        description="Edges of single data sets that replace `edges`.",
    )


@dataclass(frozen=True, config=STRICT)
class Subsets:
    """Rows of S-NI or UnNI, short references and long, which stage `subsets` collects.

    A data set takes them by its path: `{source: folder, path: "subsets:NAME"}` all of them, `"subsets:NAME/11_"` (or `0_5`, `6_10`)
    those of one bucket.
    """

    source: Literal["folder", "hub"] = Field(
        description="A local folder, or a repository of the Hugging Face hub.",
    )
    path: str = Field(
        min_length=1,
        description="The folder or repository, with task files of Super-NaturalInstructions or the published "
        "folders by length (`0_2`, `3_5`, `6_10`, `11_`).",
    )
    revision: str = Field(
        default="",
        description="Commit, tag or branch of the hub repository; empty is its default branch.",
    )


@dataclass(frozen=True, config=STRICT)
class Diversity:
    """Distinct n-grams of the responses, and the model's loss on the references (Tables 3 and 5)."""

    tests: tuple[Name, ...] = Field(
        default=(),
        description="Test sets to measure; empty measures nothing. The paper: DollyEval and SelfInst.",
    )
    ngram: Count = Field(default=4, description="Length n of the n-grams of Dist-n. The paper: 4.")
    unit: Literal["tokens", "words"] = Field(
        default="tokens",
        description="What n-grams consist of: the model's tokens, or words (what white space separates). The "
        "paper does not say which.",
    )
    loss: Literal["tokens", "released"] = Field(
        default="tokens",
        description="`tokens`: mean over all tokens of the references, their EOS included. `released`: as "
        "the published script computes it, whose values Table 3 of the paper has (D21).",
    )


def check_responses(
    exposure_bias: ExposureBias,
    lengths: Lengths,
    diversity: Diversity,
    tests: Collection[str],
    datasets: Collection[str],
    where: str,
) -> None:
    """Sets that these sections name are among `tests`, for lengths among all `datasets`, and edges rise.

    Raises UserError, one line naming the key.
    """
    named = {
        "exposure_bias.tests": exposure_bias.tests,
        "lengths.tests": lengths.tests,
        "lengths.per_test": tuple(lengths.per_test),
        "lengths.figure15": lengths.figure15,
        "diversity.tests": diversity.tests,
    }
    for key, names in named.items():
        for name in names:
            known, section = (datasets, "datasets") if key.startswith("lengths") else (tests, "data.tests")
            if key == "lengths.figure15":
                known, section = lengths.tests, "lengths.tests"
            if name not in known:
                raise UserError(f"{where}: {key}: '{name}' is not among {section}; {hint(name, known)}")
    for key, edges in {"edges": lengths.edges, **{f"per_test.{name}": e for name, e in lengths.per_test.items()}}.items():
        if list(edges) != sorted(set(edges)):
            raise UserError(f"{where}: lengths.{key}: {list(edges)} do not rise; write them from small to large")


@dataclass(frozen=True, config=STRICT)
class ClassificationTask:
    """One zero-shot classification task.

    `prompt`, `input` and `cue` are templates in which `{column}` stands for a column of the row; write `{{` and `}}` for braces.
    """

    dataset: Name = Field(description="Entry of `datasets` with the rows, whatever their columns.")
    prompt: str = Field(description="Template of the instruction, in the run's prompt template.")
    labels: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        min_length=2,
        description="Values of the column `gold`, as JSON writes them (`true`, `1`, `positive`), and the "
        "word that stands for each.",
    )
    input: str = Field(default="", description="Template of the instruction's input; empty has none.")
    cue: str = Field(
        default="",
        description="Template of the response's beginning, which the label word follows.",
    )
    gold: str = Field(default="label", description="Column of the right label.")
    truncate: str = Field(
        default="",
        description="Column that is cut from its end if the prompt is too long; empty refuses such rows.",
    )
    label: str = Field(default="", description="Name in tables and figures; empty is that of the data set.")

    @property
    def fields(self) -> list[str]:
        """Columns that the templates name."""
        parsed = [part for text in (self.prompt, self.input, self.cue) for part in string.Formatter().parse(text)]
        return list(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """Expected calibration error (ECE) of label words' probabilities (Table 2)."""

    tasks: dict[Name, ClassificationTask] = Field(
        default_factory=dict,
        description="Classification tasks by name; empty measures nothing. The paper: SST-2 and BoolQ.",
    )
    bins: Count = Field(
        default=10,
        description="Bins of equal width over [0, 1]. The paper's number is not known.",
    )
    max_prompt: Natural = Field(
        default=0,
        description="Longest prompt in tokens; 0 is what the model can take.",
    )


@dataclass(frozen=True, config=STRICT)
class Judge:
    """Who scores responses and references from 1 to 10, and how patiently it is asked."""

    kind: Literal["none", "openai", "transformers", "stand-in"] = Field(
        default="none",
        description="`none`: no judge. `openai`: any endpoint of that form at `base_url`. `transformers`: a "
        "local model. `stand-in`: scores made of ROUGE-L, for tests.",
    )
    model: str = Field(
        default="",
        description="`openai`: the model's name at the endpoint. `transformers`: a local folder. The paper: "
        "GPT-4, of which it names no snapshot.",
    )
    base_url: str = Field(
        default="https://api.openai.com/v1",
        description="Address of the endpoint, without a key in it.",
    )
    key_variable: str = Field(
        default="OPENAI_API_KEY",
        description="Environment variable that the key is read from; empty if the endpoint wants none.",
    )
    temperature: float = Field(default=0.7, ge=0, description="The judge's sampling temperature.")
    max_tokens: Count = Field(default=512, description="Longest reply in tokens.")
    tests: tuple[Name, ...] = Field(
        default=(),
        description="Test sets to judge, of `data.tests`. The paper: DollyEval, SelfInst and VicunaEval.",
    )
    rows: Natural = Field(
        default=0,
        description="Judge the first so many rows of each test set; 0 judges all.",
    )
    seeds: Count = Field(default=1, description="Judge the responses of the first so many sampling seeds.")
    concurrency: Count = Field(default=4, description="Calls at a time; of a local model, prompts at a time.")
    retries: Natural = Field(
        default=6,
        description="Failed calls for one verdict that are repeated before the stage stops.",
    )
    rereads: Natural = Field(
        default=2,
        description="How often to ask again after a reply that does not begin with two scores; then the "
        "verdict counts as missing.",
    )
    backoff: Positive = Field(
        default=1.0,
        description="Seconds before a failed call is repeated, doubled each time, up to a minute.",
    )
    timeout: Positive = Field(default=120.0, description="Seconds that one call may take.")


@dataclass(frozen=True, config=STRICT)
class Human:
    """Blind comparisons of MiniLLM's responses with the others', by annotators (Figure 4)."""

    test: str = Field(
        default="",
        description="Test set to compare on, of `data.tests`; empty makes no pages. The paper: SelfInst.",
    )
    prompts: Count = Field(default=50, description="Number of prompts, drawn with `seed`. The paper: 50.")
    seed: Natural = Field(default=10, description="Seed of the prompts, of their order and of the sides.")
    answers: tuple[str, ...] = Field(
        default=(),
        description="Answer files that annotators sent back, to be counted.",
    )


def check_judgements(
    calibration: Calibration, judge: Judge, human: Human, datasets: Collection[str], tests: Collection[str], where: str
) -> None:
    """UserError, one line naming `where` and the key, for what the types do not say."""
    for name, task in calibration.tasks.items():
        _check_task(task, datasets, where, f"calibration.tasks.{name}")
    for i, test in enumerate(judge.tests):
        _known(test, tests, where, f"judge.tests.{i}")
    if judge.kind != "none" and not judge.tests:
        raise UserError(f"{where}: judge.tests: missing; name the test sets to judge")
    if judge.kind in ("openai", "transformers") and not judge.model:
        raise UserError(f"{where}: judge.model: missing; kind '{judge.kind}' needs it")
    address = urlsplit(judge.base_url)
    if address.username or address.password or address.query:
        raise UserError(f"{where}: judge.base_url: an address with a key in it; put the key into ${judge.key_variable}")
    if human.test:
        _known(human.test, tests, where, "human.test")


def _check_task(task: ClassificationTask, datasets: Collection[str], where: str, key: str) -> None:
    _known(task.dataset, datasets, where, f"{key}.dataset")
    for name in ("prompt", "input", "cue"):
        try:
            parts = list(string.Formatter().parse(getattr(task, name)))
        except ValueError as error:
            raise UserError(f"{where}: {key}.{name}: {error}; write {{{{ and }}}} for braces in the text") from None
        for _, field, form, conversion in parts:
            if field is not None and (not field.isidentifier() or form or conversion):
                raise UserError(
                    f"{where}: {key}.{name}: {{{field}}} is no {{column}}; write {{{{ and }}}} for braces in the text"
                )
    if task.truncate and task.truncate not in task.fields:
        raise UserError(
            f"{where}: {key}.truncate: no template has the column '{task.truncate}'; {hint(task.truncate, task.fields)}"
        )


def _known(name: str, names: Collection[str], where: str, key: str) -> None:
    if name not in names:
        raise UserError(f"{where}: {key}: there is no '{name}'; {hint(name, names)}")
