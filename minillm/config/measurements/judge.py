"""A judge's scores of responses: the section, and the settings of `judge`."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.sections import Precision
from minillm.config.strict import STRICT, Count, Name, Natural, Positive, must_be_one_of
from minillm.errors import UserError

REAL_JUDGES = ("openai", "transformers")


@dataclass(frozen=True, config=STRICT)
class Judge:
    """The judge that scores responses and references from 1 to 10, and how it is called."""

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
            raise UserError(
                f"{where}: judge.base_url: the address contains a key; put the key into ${self.key_variable}"
            )

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
        """The settings in `config` for the judge."""
        return cls(stage="judge", judge=config.judge, precision=config.precision)
