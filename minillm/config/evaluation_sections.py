"""Sections of a configuration for what is measured beside ROUGE-L; each has defaults under which nothing is measured."""

from __future__ import annotations

import dataclasses
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
    """ExAccErr (docs/evaluation.md): `responses` to each of `prompts` prompts of a test set (0: all), from student and teacher.

    `finished`: the mean at a position is over the responses that reach it ("alive"), or over all, those that have ended counting 0
    ("zero").  `semantics` "released" computes as the published script does (D23).  The band is a bootstrap over prompts.
    """

    tests: tuple[Name, ...] = ()
    prompts: Natural = 0
    responses: Count = 10
    max_tokens: Count = 256
    finished: Literal["alive", "zero"] = "alive"
    semantics: Literal["paper", "released"] = "paper"
    resamples: Count = 1000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Natural = 0


@dataclass(frozen=True, config=STRICT)
class Lengths:
    """ROUGE-L by the length of the first reference in tokens: edges e1 < e2 give [0, e1], [e1 + 1, e2], [e2 + 1, inf).

    Figure 15 shows those of `tests` that `figure15` names (in the paper UnNI), Figure 7 all others (in the paper S-NI).
    """

    tests: tuple[Name, ...] = ()
    figure15: tuple[Name, ...] = ()
    edges: Edges = (5, 10)
    per_test: dict[Name, Edges] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Subsets:
    """Where the rows of S-NI or UnNI come from, short references and long (stage `subsets`): a folder, or a repository of the hub.

    In it lie task files, or the published folders by length. A data set takes the rows up by its path: {source: folder, path:
    "subsets:NAME"} all of them, "subsets:NAME/11_" (or 0_5, 6_10) those of one bucket.
    """

    source: Literal["folder", "hub"]
    path: Annotated[str, Field(min_length=1)]
    revision: str = ""


@dataclass(frozen=True, config=STRICT)
class Diversity:
    """Dist-n of the responses, and the model's loss on the references.

    `unit`: n-grams of the model's tokens, or of words (what white space separates).  `loss`: mean over all tokens of the
    references, their EOS included ("tokens"), or as the published script computes it (D21, "released").
    """

    tests: tuple[Name, ...] = ()
    ngram: Count = 4
    unit: Literal["tokens", "words"] = "tokens"
    loss: Literal["tokens", "released"] = "tokens"


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
    """One classification task without examples: rows of a data set, how they are asked, and the word of each label.

    `prompt`, `input` and `cue` are templates whose {field} stands for a column of the row.  `prompt` is the instruction and `input`
    its input in the run's prompt template; `cue` begins the response, and the label word follows it.  `gold` is the column of the
    right label, `labels` maps its values (as JSON writes them: true, 1, positive) to the words.  `truncate` is the column that is
    cut from its end where a prompt is too long.
    """

    dataset: Name
    prompt: str
    labels: Annotated[dict[str, Annotated[str, Field(min_length=1)]], Field(min_length=2)]
    input: str = ""
    cue: str = ""
    gold: str = "label"
    truncate: str = ""
    label: str = ""

    @property
    def fields(self) -> list[str]:
        """Columns that the templates name."""
        parsed = [part for text in (self.prompt, self.input, self.cue) for part in string.Formatter().parse(text)]
        return list(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """Expected calibration error of label words' probabilities.  `max_prompt` in tokens; 0: what the model can take."""

    tasks: dict[Name, ClassificationTask] = dataclasses.field(default_factory=dict)
    bins: Count = 10
    max_prompt: Natural = 0


@dataclass(frozen=True, config=STRICT)
class Judge:
    """Who scores responses against references from 1 to 10, on which test sets, and how patiently it is asked.

    openai: any endpoint of that form at `base_url`, `model` its name there; the key is read from the environment variable
    `key_variable` ("": the endpoint wants none).  transformers: `model` is a local folder.  stand-in: scores from ROUGE-L, for tests.
    `rows` (0: all) are the first of the test set, `seeds` the first of the sampling seeds.  After `retries` failed calls for one
    verdict the stage stops; after `rereads` more replies that hold no two scores a verdict is counted as missing.  Waits grow from
    `backoff` seconds; `timeout` (seconds) is that of one call.
    """

    kind: Literal["none", "openai", "transformers", "stand-in"] = "none"
    model: str = ""
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    temperature: Annotated[float, Field(ge=0)] = 0.7
    max_tokens: Count = 512
    tests: tuple[Name, ...] = ()
    rows: Natural = 0
    seeds: Count = 1
    concurrency: Count = 4
    retries: Natural = 6
    rereads: Natural = 2
    backoff: Positive = 1.0
    timeout: Positive = 120.0


@dataclass(frozen=True, config=STRICT)
class Human:
    """Blind comparisons of MiniLLM's responses with the others' on the test set `test` ("": none), and the answer files to count."""

    test: str = ""
    prompts: Count = 50
    seed: Natural = 10
    answers: tuple[str, ...] = ()


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
