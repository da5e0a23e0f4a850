"""The three kinds of judge: an OpenAI-style endpoint, a local transformers model, a stand-in by ROUGE-L."""

from __future__ import annotations

import contextlib
import hashlib
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
from minillm.readers import parse_json
from minillm.redact import blanked, holds
from minillm.scores import rouge_l

# Seconds before a call is made again, whatever the endpoint asks for.
LONGEST_WAIT = 60.0
# Characters kept of a reply that is not a chat completion.
KEPT = 4000
# Codes with which endpoints refuse a prompt for its content.
FILTERS = frozenset({"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"})


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

    def replies(self, questions: Sequence[JudgePrompt]) -> Iterator[tuple[JudgePrompt, str | None]]:
        """Each question with its reply, in any order, as soon as it is there; None: a filter refused it."""
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
                    ends=[eos],
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

    The key is read when the first question is asked and appears nowhere else: whatever the endpoint says is
    blanked (redact.py) before it is kept or shown.
    """

    def __init__(self, settings: Judge) -> None:
        self.settings, self._stop, self._key = settings, threading.Event(), ""
        # What the endpoint calls the longest reply: reasoning models refuse the older name.
        self._limit = "max_tokens"
        self.identity = {
            "kind": "openai",
            "model": settings.model,
            "base_url": settings.base_url,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }

    def replies(self, questions: Sequence[JudgePrompt]) -> Iterator[tuple[JudgePrompt, str | None]]:
        """Raises UserError after the last retry, once the replies of pending calls have been yielded."""
        client = self._client()
        self._stop.clear()
        failure: UserError | None = None
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            asked: dict[Future[str | None], JudgePrompt] = {
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
        # The client would name such a key in its exception, or repeat the call for ever.
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"judge.key_variable: the key in ${name} has a space, a line end or another character that "
                "no key has; export it again"
            )
        self._key = key if name else ""
        for where in ("base_url", "model"):
            if holds(getattr(self.settings, where), self._key):
                raise UserError(f"judge.{where}: contains the key in ${name}; take it out, it would be kept")
        return openai.OpenAI(
            api_key=key,
            base_url=self.settings.base_url,
            timeout=self.settings.timeout,
            max_retries=0,
            organization="",
            project="",
        )

    def _ask(self, client: Any, prompt: str) -> str | None:
        """The text of one reply; once a call has failed for good, no other is begun."""
        try:
            return self._answer(client, prompt)
        except UserError:
            self._stop.set()
            raise

    def _answer(self, client: Any, prompt: str) -> str | None:
        """The text of one reply, after as many calls as it takes; None if a filter refused the prompt."""
        import openai

        if self._stop.is_set():
            raise _Stopped
        for attempt in range(self.settings.retries + 1):
            try:
                return self._call(client, prompt)
            except openai.APIStatusError as error:
                reason, asked_for = f"status {error.status_code}", error.response.headers.get("retry-after")
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    if _filtered(error):
                        return None
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

    def _call(self, client: Any, prompt: str) -> str | None:
        """One call; a second one if the endpoint has another name for the longest reply."""
        import openai

        limit = self._limit
        values: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.settings.temperature,
        }
        create = client.chat.completions.with_raw_response.create
        try:
            answer = create(**values, **{limit: self.settings.max_tokens})
        except openai.APIStatusError as error:
            if limit != "max_tokens" or not _wants_other_limit(error):
                raise
            limit = "max_completion_tokens"
            answer = create(**values, **{limit: self.settings.max_tokens})
            self._limit = limit
        # Blanked before the text may be cut, and again once it is unescaped.
        text = _content(blanked(answer.http_response.text, self._key))
        return None if text is None else blanked(text, self._key)

    def _wait(self, attempt: int, asked_for: str | None) -> float:
        """Seconds to wait: doubled each time, with a jitter of a quarter.

        At least the endpoint's Retry-After, at most a minute.
        """
        wait = self.settings.backoff * 2**attempt * random.uniform(0.75, 1.25)
        # Retry-After may be a date.
        with contextlib.suppress(ValueError):
            wait = max(wait, float(asked_for or 0))
        return min(wait, LONGEST_WAIT)

    def _refused(self, status: int, text: str) -> str:
        where = f"{self.settings.base_url}: status {status}"
        # The endpoint's text may repeat a part of the key that is too short to be found.
        if status in (401, 403):
            return f"{where}: the key in ${self.settings.key_variable} was refused; check it"
        line = " ".join(blanked(text, self._key).split())[:200]
        return f"{where} for the model '{self.settings.model}': {line}; check judge.model and judge.base_url"


def _wants_other_limit(error: Any) -> bool:
    """Whether a call was refused because the longest reply has another name there."""
    return error.status_code in (400, 422) and "max_completion_tokens" in error.response.text


def _filtered(error: Any) -> bool:
    """Whether a filter of contents refused this prompt, as the codes of the known endpoints say."""
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("innererror")
    codes = [body.get("code"), body.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    return error.status_code in (400, 422) and not FILTERS.isdisjoint(map(str, codes))


def _content(body: str) -> str | None:
    """The reply in a chat completion, the texts of its parts joined; None if a filter withheld it.

    For anything else its beginning, which then has no two scores.
    """
    try:
        choice = parse_json(body, "reply")["choices"][0]
        content = choice["message"]["content"]
    except (UserError, KeyError, IndexError, TypeError):
        return body[:KEPT]
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict) and part.get("type") == "text")
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    text = content if isinstance(content, str) else ""
    return None if choice.get("finish_reason") == "content_filter" and not text.strip() else text
