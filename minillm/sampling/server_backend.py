"""Responses by a server that speaks OpenAI's form of completions, such as `vllm serve`.

Prompts are sent as token ids, so that the server cannot tokenize them in another way; token ids of the
responses are asked back (vLLM's `return_token_ids`).  Of a server that returns only text, that is encoded
again and compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from minillm.config.launch import Launch
from minillm.config.sampling import Sampling
from minillm.endpoint import Address, Endpoint
from minillm.errors import UserError
from minillm.models.loading import decode
from minillm.models.served import Served
from minillm.readers import are_tokens, is_a, parse_json
from minillm.sampling.answerer import Answer, Answerer, Request, seed_of

RETRIES, BACKOFF = 6, 1.0
# Of vLLM, in addition to OpenAI's: nothing of its own defaults, and what ids they were.
NEUTRAL: dict[str, Any] = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": True,
    "return_token_ids": True,
}


class Server(Answerer):
    """The model at an address; `tokenizer` is the run's, which must be the server's too."""

    def __init__(self, served: Served, tokenizer: PreTrainedTokenizerBase, launch: Launch) -> None:
        self.served, self.tokenizer = served, tokenizer
        self.endpoint = Endpoint(
            Address(
                served.address,
                served.model,
                served.key_variable,
                # As many as a model of this machine would answer at once.
                launch.eval_batch,
                RETRIES,
                BACKOFF,
                launch.patience,
                {
                    "base_url": "checkpoints.path",
                    "model": "checkpoints.served_name",
                    "key_variable": "checkpoints.key_variable",
                },
                "server",
                "response",
            )
        )

    def identity(self) -> dict[str, str]:
        return {"program": "server", "address": self.served.address, "model": self.served.model}

    def check(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> None:
        """Raises UserError for what servers lack; the server itself says how long a prompt may be."""
        if sampling.no_repeat_ngram:
            raise UserError("no_repeat_ngram: a server has no n-gram block; set it to 0")

    def answers(
        self, requests: Sequence[Request], sampling: Sampling, eos: int, vocabulary: int
    ) -> Iterator[tuple[Request, Answer]]:
        """As Answerer says.  Raises UserError if the server does not answer, or not in the run's tokens."""

        def ask(client: Any, request: Request) -> Answer:
            return self._ask(client, request, sampling, eos, vocabulary)

        yield from self.endpoint.ask_all(requests, ask)

    def _ask(self, client: Any, request: Request, sampling: Sampling, eos: int, vocabulary: int) -> Answer:
        greedy = sampling.top_k == 1
        reply = client.completions.with_raw_response.create(
            model=self.served.model,
            prompt=request.prompt.tolist(),
            max_tokens=sampling.max_tokens,
            temperature=0.0 if greedy else sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            # Servers take signed numbers of 64 bits.
            seed=seed_of(request),
            presence_penalty=0.0,
            frequency_penalty=0.0,
            extra_body={**NEUTRAL, "top_k": 0 if greedy else sampling.top_k, "stop_token_ids": [eos]},
        )
        text = self.endpoint.blanked(reply.http_response.text)
        try:
            choice = parse_json(text, "reply")["choices"][0]
            said, reason = choice["text"], choice["finish_reason"]
        except (UserError, KeyError, IndexError, TypeError):
            raise UserError(f"{self._where}: its reply is no completion: {text[:200]!r}") from None
        if not isinstance(said, str) or reason not in ("stop", "length"):
            raise UserError(f"{self._where}: a reply without text or with finish_reason {reason!r}")
        ids = choice.get("token_ids")
        if ids is None:
            ids = self.tokenizer.encode(said, add_special_tokens=False) + [eos] * (reason == "stop")
            # What was drawn may have been cut into other tokens.
            tokens = np.asarray(ids[: sampling.max_tokens], dtype=np.int64)
            reason = "stop" if eos in tokens else "length"
        elif is_a(ids, list) and are_tokens(ids):
            tokens = np.asarray(ids, dtype=np.int64)
        else:
            raise UserError(f"{self._where}: 'token_ids' are no list of token ids")
        return self._checked(tokens, said, reason, sampling, eos, vocabulary)

    @property
    def _where(self) -> str:
        return self.served.address

    def _checked(
        self, tokens: np.ndarray, text: str, reason: str, sampling: Sampling, eos: int, vocabulary: int
    ) -> Answer:
        """The answer, if it is one that the run's tokenizer and settings allow; otherwise UserError."""
        where, ends = self._where, np.flatnonzero(tokens == eos)
        if not 0 < len(tokens) <= sampling.max_tokens:
            raise UserError(
                f"{where}: a response of {len(tokens)} tokens; max_tokens is {sampling.max_tokens}"
            )
        if tokens.max() >= vocabulary:
            raise UserError(
                f"{where}: token {tokens.max()} is not among the tokenizer's {vocabulary}; the server has "
                "another tokenizer, or draws padding of its embedding"
            )
        finished = bool(len(ends))
        if (finished and ends[0] != len(tokens) - 1) or finished != (reason == "stop"):
            raise UserError(
                f"{where}: a response that ends with '{reason}', but not at the EOS {eos}; the server stops "
                "at other tokens (vLLM: start it with --generation-config vllm)"
            )
        # Spaces at the edges, and bytes that are no characters, are shown in several ways.
        ours = decode(self.tokenizer, tokens)
        if finished and "\ufffd" not in ours and "".join(ours.split()) != "".join(text.split()):
            raise UserError(
                f"{where}: its text {json.dumps(text[:60])} is {json.dumps(ours[:60])} in the run's "
                "tokenizer; the two must be the same"
            )
        return Answer(tokens.astype(np.int32), finished)
