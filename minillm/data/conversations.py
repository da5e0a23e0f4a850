"""Rows that are conversations: lists of messages, as data sets of the hub have them, become questions.

A column `messages` or `conversations` holds a list of {"role", "content"} or {"from", "value"}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from minillm.errors import UserError

# The first is also the name of the field.
MESSAGES = ("messages", "conversations")
KEYS = (("role", "content"), ("from", "value"))
# Other names of roles; any other role is left to the template.
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
AGAIN = "fix or delete this row"
# Ids of the answers before a conversation's last are that many apart: no source has as many rows.
TURN = 2**32

Turn = dict[str, str]


class Question(NamedTuple):
    """What a row is made of: the arguments of sources.Row, in their order."""

    id: int
    instruction: str
    input: str
    outputs: tuple[str, ...]
    category: str
    messages: tuple[Turn, ...]


def conversation(entry: dict[str, Any], place: str, fields: dict[str, str]) -> list[Turn] | None:
    """The messages of a row, {"role", "content"} each, up to an answer; None if the row has an instruction.

    If a row has both, the instruction counts, unless `fields` names the messages.  Raises UserError, one line
    that begins with `place`, if they are no messages, or the last is not the assistant's.
    """
    name = fields.get(MESSAGES[0]) or next((name for name in MESSAGES if entry.get(name) is not None), "")
    plain = entry.get(fields.get("instruction", "instruction")) is not None
    if not name or (plain and MESSAGES[0] not in fields):
        return None
    messages = _listed(entry.get(name))
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: no list of messages in the field '{name}'; {AGAIN}")
    turns = [_turn(message, f"{place}: {name}.{i}") for i, message in enumerate(messages)]
    if not any(turn["role"] == "assistant" for turn in turns):
        raise UserError(f"{place}: no message of the assistant in the field '{name}'; {AGAIN}")
    if turns[-1]["role"] != "assistant":
        last = turns[-1]["role"]
        raise UserError(f"{place}: the last message is the {last}'s, not the assistant's; {AGAIN}")
    if not any(turn["role"] == "user" for turn in turns[:-1]):
        raise UserError(f"{place}: no message of the user before the answer; {AGAIN}")
    return turns


def _listed(messages: Any) -> Any:
    """A list of messages that is there as an object of lists, as `datasets` gives sequences of objects."""
    columns = list(messages.values()) if isinstance(messages, dict) else []
    if not columns or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        return messages
    return [dict(zip(messages, values, strict=True)) for values in zip(*columns, strict=True)]


def _turn(message: Any, where: str) -> Turn:
    for role, content in KEYS:
        if isinstance(message, dict) and role in message:
            if not isinstance(message[role], str) or not isinstance(message.get(content), str):
                raise UserError(f"{where}: '{role}' and '{content}' must be texts; {AGAIN}")
            return {"role": ROLES.get(message[role], message[role]), "content": message[content]}
    raise UserError(f"{where}: a message must have 'role' and 'content', or 'from' and 'value'; {AGAIN}")


def questions(id_: int, turns: Sequence[Turn], every_turn: bool) -> list[Question]:
    """The last answer with the turns before it; with `every_turn` also each earlier answer to a user.

    The last answer has the conversation's own id, the k-th before it that and k * TURN.
    """
    places = [
        i
        for i, turn in enumerate(turns)
        if turn["role"] == "assistant" and any(earlier["role"] == "user" for earlier in turns[:i])
    ]
    chosen = places if every_turn else places[-1:]
    return [
        Question(
            id_ + (len(chosen) - 1 - number) * TURN,
            as_text(turns[:i]),
            "",
            (turns[i]["content"],),
            "",
            tuple(dict(turn) for turn in turns[:i]),
        )
        for number, i in enumerate(chosen)
    ]


def are_messages(value: Any) -> bool:
    """Whether this is a list of {"role": text, "content": text}."""
    return isinstance(value, list) and all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in KEYS[0]) for turn in value
    )


def as_text(messages: Sequence[Turn]) -> str:
    """One text of the messages: of a single one of the user its content, of others with their roles."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
