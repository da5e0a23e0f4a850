"""The three kinds of judge: an OpenAI-style endpoint, a local transformers model, a stand-in by ROUGE-L."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minillm.config.measurements.judge import Judge
from minillm.data.sources import resolve_path
from minillm.endpoint import Address, Endpoint
from minillm.errors import UserError
from minillm.files import sha256
from minillm.readers import parse_json
from minillm.scores import rouge_l

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
        return ChatEndpoint(settings)
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


class ChatEndpoint:
    """Chat completions over HTTP (endpoint.py); a prompt that a filter of contents refuses has no reply."""

    def __init__(self, settings: Judge) -> None:
        self.settings = settings
        self.endpoint = Endpoint(
            Address(
                settings.base_url,
                settings.model,
                settings.key_variable,
                settings.concurrency,
                settings.retries,
                settings.backoff,
                settings.timeout,
                {key: f"judge.{key}" for key in ("base_url", "model", "key_variable")},
                "judge",
                "verdict",
            )
        )
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
        return self.endpoint.ask_all(questions, self._reply)

    def _reply(self, client: Any, question: JudgePrompt) -> str | None:
        """The text of one reply; None if a filter refused the prompt."""
        import openai

        try:
            return self._call(client, question.prompt)
        except openai.APIStatusError as error:
            if _filtered(error):
                return None
            raise

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
        text = _content(self.endpoint.blanked(answer.http_response.text))
        return None if text is None else self.endpoint.blanked(text)


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
