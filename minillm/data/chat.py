"""Chat templates: a tokenizer that renders rows as the configuration says, and answers that end as it does.

System prompt, thinking and date are written into the template itself.  So whoever loads the tokenizer of a
data or model folder, with transformers alone too, renders prompts as they were trained on.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from minillm.config.chat import Chat
from minillm.data.sources import Row, resolve_path
from minillm.errors import UserError
from minillm.readers import read_text

Messages = Sequence[dict[str, str]]
# What a template writes in place of today: as Llama 3's does where it cannot know the date.
DATE = datetime.date(2024, 7, 26)
NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
QUESTION, ANSWER = "Question?", "Answer."


def with_chat(tokenizer: PreTrainedTokenizerBase, chat: Chat, where: str = "tokenizers.chat") -> None:
    """Give `tokenizer` the template that `chat` describes, and as its EOS the token that ends an answer.

    Raises UserError if there is no template, if it fails on a question and its answer or refuses the system
    prompt, and if the end is not one token of the vocabulary.
    """
    text = _template(tokenizer, chat, where)
    head = ""
    if chat.thinking is not None:
        value = str(chat.thinking).lower()
        head += "{%- if enable_thinking is not defined %}{%- set enable_thinking = "
        head += value + " %}{%- endif %}\n"
    tokenizer.chat_template = head + NOW.sub(lambda found: _literal(DATE.strftime(found[2])), text)
    exchange = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    rendered(tokenizer, exchange[:1], where)
    if chat.system:
        tokenizer.chat_template = (
            "{%- if messages[0]['role'] != 'system' %}{%- set messages = [{'role': 'system', 'content': "
            + _literal(chat.system)
            + "}] + messages %}{%- endif %}\n"
            + tokenizer.chat_template
        )
        rendered(tokenizer, exchange[:1], f"{where}.system", "leave it empty")
    end = chat.end or _closing(tokenizer, rendered(tokenizer, exchange, where, prompt=False))
    if end not in tokenizer.get_vocab():
        raise UserError(f"{where}.end: '{end}' is not a token of this vocabulary; name one that is")
    # A special token, so that decoding leaves it out.
    tokenizer.add_special_tokens({"eos_token": end})


def _template(tokenizer: PreTrainedTokenizerBase, chat: Chat, where: str) -> str:
    if chat.template:
        path = resolve_path(chat.template, f"{where}.template")
        return read_text(path, "no such file; name a file with a Jinja chat template")
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            f"{where}: this tokenizer has no chat template of its own; name a file in {where}.template, "
            "or choose another data.template"
        ) from None


def _literal(text: str) -> str:
    """A Jinja literal of `text`, whatever is in it."""
    return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def _closing(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The first added token after the answer in `text`; without one, the tokenizer's EOS."""
    # Some vocabularies have runs of spaces among them.
    added = [token for token in tokenizer.get_added_vocab() if token.strip()]
    after = text[text.rindex(ANSWER) + len(ANSWER) :] if ANSWER in text else ""
    places = {token: after.index(token) for token in added if token in after}
    end = min(places, key=lambda token: (places[token], -len(token)), default=tokenizer.eos_token)
    return str(end)


def messages_of(row: Row) -> list[dict[str, str]]:
    """The turns before the answer; of an instruction row one of the user, its input after a blank line."""
    if row.messages:
        return [dict(message) for message in row.messages]
    content = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return [{"role": "user", "content": content}]


def answer_of(row: Row) -> dict[str, str]:
    """The first answer of a row as a message."""
    return {"role": "assistant", "content": row.outputs[0]}


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    where: str,
    advice: str = "fix the row or the template",
    prompt: bool = True,
) -> str:
    """The text of `messages`; with `prompt` up to where the assistant's answer begins.

    Raises UserError, one line that begins with `where`, if the template fails: it is a program of its own.
    """
    try:
        text: Any = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: the chat template refuses this ({reason}); {advice}") from None
    return str(text)
