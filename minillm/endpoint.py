"""Calls over HTTP to an endpoint of OpenAI's form: several at once, repeated if they fail, without its key.

The key is read when the first call is made and appears nowhere else: whatever the endpoint says is blanked
(redact.py) before it is kept or shown.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar

from minillm.errors import UserError
from minillm.redact import blanked, holds

Q = TypeVar("Q")
R = TypeVar("R")
# Seconds before a call is made again, whatever the endpoint asks for.
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Address:
    """Where an endpoint is and how it is called.

    concurrency: calls at a time.  retries: failed calls for one question that are repeated.  backoff: seconds
    before the first repetition, doubled each time.  timeout: seconds of one call.  keys: what the
    configuration calls `base_url`, `model` and `key_variable`; who and what: who is asked and for what, in
    messages.
    """

    base_url: str
    model: str
    key_variable: str
    concurrency: int
    retries: int
    backoff: float
    timeout: float
    keys: Mapping[str, str]
    who: str
    what: str


class _Stopped(Exception):
    """A call that was not made because another one failed for good."""


class Endpoint:
    """Calls to one address."""

    def __init__(self, address: Address) -> None:
        self.address, self._stop, self._key = address, threading.Event(), ""

    def ask_all(self, questions: Sequence[Q], call: Callable[[Any, Q], R]) -> Iterator[tuple[Q, R]]:
        """Each question with what `call(client, question)` returns, in any order, as soon as it is there.

        Raises UserError after the last retry, once the results of pending calls have been yielded.
        """
        client = self.client()
        self._stop.clear()
        failure: UserError | None = None
        with ThreadPoolExecutor(self.address.concurrency) as pool:
            asked: dict[Future[R], Q] = {pool.submit(self._ask, client, q, call): q for q in questions}
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

    def client(self) -> Any:
        """An `openai.OpenAI` with the key in it; UserError if there is none or it cannot be one."""
        import openai

        address = self.address
        name = address.key_variable
        where = address.keys["key_variable"]
        key = os.environ.get(name, "") if name else "none"
        if not key:
            raise UserError(f"{where}: ${name} is not set; export the key there (it is written nowhere)")
        # The client would name such a key in its exception, or repeat the call for ever.
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"{where}: the key in ${name} has a space, a line end or another character that "
                "no key has; export it again"
            )
        self._key = key if name else ""
        for part in ("base_url", "model"):
            if holds(getattr(address, part), self._key):
                raise UserError(
                    f"{address.keys[part]}: contains the key in ${name}; take it out, it would be kept"
                )
        return openai.OpenAI(
            api_key=key,
            base_url=address.base_url,
            timeout=address.timeout,
            max_retries=0,
            organization="",
            project="",
        )

    def blanked(self, text: str) -> str:
        """`text` without the key, whole or in part."""
        return blanked(text, self._key)

    def _ask(self, client: Any, question: Q, call: Callable[[Any, Q], R]) -> R:
        """The result of one question; once a call has failed for good, no other is begun."""
        try:
            return self._repeated(client, question, call)
        except UserError:
            self._stop.set()
            raise

    def _repeated(self, client: Any, question: Q, call: Callable[[Any, Q], R]) -> R:
        """The result of one question, after as many calls as it takes."""
        import openai

        if self._stop.is_set():
            raise _Stopped
        address = self.address
        for attempt in range(address.retries + 1):
            try:
                return call(client, question)
            except openai.APIStatusError as error:
                reason, asked_for = f"status {error.status_code}", error.response.headers.get("retry-after")
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise UserError(self._refused(error.status_code, str(error))) from None
            # Timeouts included.
            except openai.APIConnectionError as error:
                reason, asked_for = type(error).__name__, None
            if attempt < address.retries:
                wait = self.wait(attempt, asked_for)
                print(
                    f"{address.who}: {reason}; call {attempt + 2} for this {address.what} in {wait:.1f} s",
                    file=sys.stderr,
                )
                if self._stop.wait(wait):
                    raise _Stopped
        raise UserError(
            f"{address.base_url}: no answer after {address.retries + 1} calls (last: {reason}); "
            f"{address.what}s so far are kept, run it again to resume"
        )

    def wait(self, attempt: int, asked_for: str | None) -> float:
        """Seconds to wait: doubled each time, with a jitter of a quarter.

        At least the endpoint's Retry-After, at most a minute.
        """
        wait = self.address.backoff * 2**attempt * random.uniform(0.75, 1.25)
        # Retry-After may be a date.
        with contextlib.suppress(ValueError):
            wait = max(wait, float(asked_for or 0))
        return min(wait, LONGEST_WAIT)

    def _refused(self, status: int, text: str) -> str:
        address = self.address
        where = f"{address.base_url}: status {status}"
        # The endpoint's text may repeat a part of the key that is too short to be found.
        if status in (401, 403):
            return f"{where}: the key in ${address.key_variable} was refused; check it"
        line = " ".join(self.blanked(text).split())[:200]
        keys = address.keys
        return (
            f"{where} for the model '{address.model}': {line}; check {keys['model']} and {keys['base_url']}"
        )
