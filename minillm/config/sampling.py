"""How responses are drawn, and by which program."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Count, Natural, Positive
from minillm.errors import UserError

Backend = Literal["transformers", "vllm"]
# Below it vLLM would sample with another temperature.
COLDEST = 0.01


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """How responses are drawn."""

    temperature: Positive = Field(
        default=1.0,
        description="Divides the logits before the softmax. The paper: 1.",
    )
    top_k: Natural = Field(default=0, description="Draw only from this many of the likeliest tokens; 0: off.")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Draw only from the likeliest tokens, up to this total probability; 1.0: off.",
    )
    no_repeat_ngram: Natural = Field(
        default=0,
        description="No n-gram of this length may occur twice in prompt and response; 0: off. The paper does "
        "not mention it; its numbers were made with 6 at test time (D19 in docs/method.md).",
    )
    max_tokens: Count = Field(default=256, description="Longest response, in tokens, EOS included.")
    backend: Backend = Field(
        default="transformers",
        description="Which program draws them. `vllm`: vLLM, an installation of its own (docs/running.md), "
        "many times as fast with large models; its random numbers are others, so responses differ.",
    )

    def check(self, config: Any, where: str) -> None:
        """Raises UserError for what vLLM does not draw as asked; `where` as for the sections' checks."""
        check_backend(self, f"{where}: generate")


def check_backend(sampling: Sampling, where: str) -> None:
    """Raises UserError, one line that begins with `where`, for settings that vLLM cannot keep."""
    if sampling.backend != "vllm":
        return
    if sampling.no_repeat_ngram:
        raise UserError(
            f"{where}.no_repeat_ngram: vLLM has no n-gram block; set it to 0, or backend: transformers"
        )
    if sampling.temperature < COLDEST:
        raise UserError(
            f"{where}.temperature: vLLM draws with {COLDEST} instead of a lower one; for greedy answers set "
            "top_k: 1"
        )
