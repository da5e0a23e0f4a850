"""A judge's scores of responses: the section, and the settings of `judge`."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.sections import Precision
from minillm.config.strict import STRICT, Count, Name, Natural, Positive, must_be_one_of
from minillm.errors import UserError

REAL_JUDGES = ("openai", "transformers")


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

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        for i, test in enumerate(self.tests):
            must_be_one_of(test, config.data.tests, where, f"judge.tests.{i}")
        if self.kind != "none" and not self.tests:
            raise UserError(f"{where}: judge.tests: missing; name the test sets to judge")
        if self.is_real and not self.model:
            raise UserError(f"{where}: judge.model: missing; kind '{self.kind}' needs it")
        address = urlsplit(self.base_url)
        if address.username or address.password or address.query:
            raise UserError(f"{where}: judge.base_url: an address with a key in it; put the key into ${self.key_variable}")

    @property
    def is_real(self) -> bool:
        """Whether its scores may be shown: a stand-in judges nothing."""
        return self.kind in REAL_JUDGES

    @property
    def asked(self) -> tuple[Name, ...]:
        """The test sets that are judged: none without a judge."""
        return self.tests if self.kind != "none" else ()


@dataclass(frozen=True, config=STRICT)
class JudgeSettings:
    """`judge`: who judges, and which rows."""

    stage: Literal["judge"]
    judge: Judge
    precision: Precision

    @classmethod
    def of(cls, config: Any, stage: str) -> JudgeSettings:
        """The settings that `config` has for the judge."""
        return cls(stage="judge", judge=config.judge, precision=config.precision)
