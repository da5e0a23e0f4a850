"""The three kinds of judge: an OpenAI-style endpoint, a local transformers model, a stand-in by ROUGE-L."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minillm.config.measurements.judge import Judge
from minillm.data.sources import resolve_path
from minillm.errors import UserError
from minillm.files import sha256
from minillm.scores import rouge_l

# Seconds before a call is made again, whatever the endpoint asks for.
LONGEST_WAIT = 60.0
# Characters kept of a reply that is not a chat completion.
KEPT = 4000


@dataclass(frozen=True)
class JudgePrompt:
    """One prompt for the judge; `key` names its verdict, `attempt` counts the replies so far."""

    key: str
    prompt: str
    first: str
    second: str
    references: tuple[str, ...]
    attempt: int = 0


class JudgeClient(Protocol):
    """Answers questions.  `identity` is what a verdict depends on besides the prompt."""

    identity: dict[str, Any]

    def replies(self, questions: Sequence[JudgePrompt]) -> Iterator[tuple[JudgePrompt, str]]:
        """Each question with its reply, in any order, as soon as it is there."""
        ...


def make_judge(settings: Judge, precision: str) -> JudgeClient:
    """The judge that a configuration names; nothing is loaded or asked yet."""
    if settings.kind == "openai":
        return Endpoint(settings)
    if settings.kind == "transformers":
        return Local(settings, precision)
    if settings.kind == "stand-in":
        return StandIn()
    raise UserError("judge.kind: none; name a judge to ask (openai, transformers, stand-in)")


class StandIn:
    """1 to 10 from the ROUGE-L of each text against the references: deterministic, and not a judgement."""

    identity = {"kind": "stand-in", "model": "ROUGE-L of the text against the references"}

    def replies(self, questions: Sequence[JudgePrompt]) -> Iterator[tuple[JudgePrompt, str]]:
        for question in questions:
            scores = [
                1 + 0.09 * rouge_l(text, question.references) for text in (question.first, question.second)
            ]
            yield question, f"{scores[0]:.1f} {scores[1]:.1f}\nStand-in: ROUGE-L, no judgement."


class Local:
    """A model folder, sampled with random numbers from the verdict's key, so that batches change nothing."""

    def __init__(self, settings: Judge, precision: str) -> None:
        self.settings, self.precision = settings, precision
        self.folder = resolve_path(settings.model, "judge.model")
        if not (self.folder / "config.json").is_file():
            raise UserError(
                f"judge.model: {self.folder}: no model here (config.json is missing); check the path"
            )
        self.identity = {
            "kind": "transformers",
            "model": settings.model,
            "content": _fingerprint(self.folder),
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "precision": precision,
        }

    def replies(self, questions: Sequence[JudgePrompt]) -> Iterator[tuple[JudgePrompt, str]]:
        import numpy as np

        from minillm.config.sections import Sampling
        from minillm.data.tokenizers import vocabulary_size
        from minillm.models.loading import decode, load_model, load_tokenizer, special_tokens
        from minillm.runtime.processes import start
        from minillm.sampling.sample import sample

        world = start(0)
        tokenizer = load_tokenizer(self.folder)
        model = load_model(self.folder, self.precision, world.device)
        eos, pad = special_tokens(tokenizer)
        vocabulary = vocabulary_size(tokenizer)
        greedy = self.settings.temperature == 0
        sampling = Sampling(
            temperature=self.settings.temperature or 1.0,
            top_k=1 if greedy else 0,
            max_tokens=self.settings.max_tokens,
        )
        batch = self.settings.concurrency
        for first in range(0, len(questions), batch):
            part = questions[first : first + batch]
            prompts = [
                np.array(tokenizer.encode(_chat(tokenizer, q.prompt), add_special_tokens=False)) for q in part
            ]
            for attempt in sorted({q.attempt for q in part}):
                chosen = [i for i, q in enumerate(part) if q.attempt == attempt]
                samples = sample(
                    model,
                    [prompts[i] for i in chosen],
                    [int(part[i].key[:12], 16) for i in chosen],
                    sampling,
                    seed=0,
                    step=attempt,
                    eos=eos,
                    pad=pad,
                    vocabulary=vocabulary,
                    batch=batch,
                )
                for i, response in zip(chosen, samples, strict=True):
                    yield part[i], decode(tokenizer, response.tokens)


def _chat(tokenizer: Any, prompt: str) -> str:
    if not tokenizer.chat_template:
        return prompt + "\n"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return str(text)


def _fingerprint(folder: Path) -> str:
    """Hash of all files of a model folder, weights included: another fine-tuning is another judge."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    text = "\n".join(f"{path.name} {sha256(path)}" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()


class _Stopped(Exception):
    """A call that was not made because another one failed for good."""


class Endpoint:
    """Chat completions over HTTP, several at once; failed calls are retried with growing waits.

    The key is read when the first question is asked and appears in no message.
    """

    def __init__(self, settings: Judge) -> None:
        self.settings, self._stop = settings, threading.Event()
        self.identity = {
            "kind": "openai",
            "model": settings.model,
            "base_url": settings.base_url,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }

    def replies(self, questions: Sequence[JudgePrompt]) -> Iterator[tuple[JudgePrompt, str]]:
        """Raises UserError after the last retry, once the replies of pending calls have been yielded."""
        client = self._client()
        self._stop.clear()
        failure: UserError | None = None
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            asked: dict[Future[str], JudgePrompt] = {
                pool.submit(self._ask, client, q.prompt): q for q in questions
            }
            try:
                for done in as_completed(asked):
                    if done.cancelled():
                        continue
                    error = done.exception()
                    if error is None:
                        yield asked[done], done.result()
                    elif isinstance(error, UserError):
                        failure = failure or error
                    elif not isinstance(error, _Stopped):
                        raise error
            finally:
                self._stop.set()
                for future in asked:
                    future.cancel()
        client.close()
        if failure:
            raise failure

    def _client(self) -> Any:
        import openai

        name = self.settings.key_variable
        key = os.environ.get(name, "") if name else "none"
        if not key:
            raise UserError(
                f"judge.key_variable: ${name} is not set; export the key there (it is written nowhere)"
            )
        self._key = key
        return openai.OpenAI(
            api_key=key,
            base_url=self.settings.base_url,
            timeout=self.settings.timeout,
            max_retries=0,
            organization="",
            project="",
        )

    def _ask(self, client: Any, prompt: str) -> str:
        """The text of one reply; once a call has failed for good, no other is begun."""
        try:
            return self._call(client, prompt)
        except UserError:
            self._stop.set()
            raise

    def _call(self, client: Any, prompt: str) -> str:
        """The text of one reply, after as many calls as it takes."""
        import openai

        if self._stop.is_set():
            raise _Stopped
        for attempt in range(self.settings.retries + 1):
            try:
                answer = client.chat.completions.with_raw_response.create(
                    model=self.settings.model,
                    messages=[{"role": "user", "content": prompt}],
                    temperature=self.settings.temperature,
                    max_tokens=self.settings.max_tokens,
                )
                # Blanked before the text may be cut, and again once it is unescaped.
                return self._blanked(_content(self._blanked(answer.http_response.text)))
            except openai.APIStatusError as error:
                reason, asked_for = f"status {error.status_code}", error.response.headers.get("retry-after")
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise UserError(self._refused(error.status_code, str(error))) from None
            # Timeouts included.
            except openai.APIConnectionError as error:
                reason, asked_for = type(error).__name__, None
            if attempt < self.settings.retries:
                wait = self._wait(attempt, asked_for)
                print(
                    f"judge: {reason}; call {attempt + 2} for this verdict in {wait:.1f} s", file=sys.stderr
                )
                if self._stop.wait(wait):
                    raise _Stopped
        raise UserError(
            f"{self.settings.base_url}: no answer after {self.settings.retries + 1} calls (last: {reason}); "
            "verdicts so far are kept, run it again to resume"
        )

    def _wait(self, attempt: int, asked_for: str | None) -> float:
        """Seconds to wait: doubled each time, with a jitter of a quarter.

        At least the endpoint's Retry-After, at most a minute.
        """
        wait = self.settings.backoff * 2**attempt * random.uniform(0.75, 1.25)
        # Retry-After may be a date.
        with contextlib.suppress(ValueError):
            wait = max(wait, float(asked_for or 0))
        return min(wait, LONGEST_WAIT)

    def _blanked(self, text: str) -> str:
        """`text` without the key, which an endpoint may repeat."""
        return text.replace(self._key, "***") if self.settings.key_variable else text

    def _refused(self, status: int, text: str) -> str:
        where = f"{self.settings.base_url}: status {status}"
        # The endpoint's text may repeat a part of the key.
        if status in (401, 403):
            return f"{where}: the key in ${self.settings.key_variable} was refused; check it"
        line = " ".join(self._blanked(text).split())[:200]
        return f"{where} for the model '{self.settings.model}': {line}; check judge.model and judge.base_url"


def _content(body: str) -> str:
    """The reply in a chat completion; for anything else its beginning, which then has no two scores."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return body[:KEPT]
    return text if isinstance(text, str) else ""
