"""How a row becomes a prompt, and how prompt and response become tokens."""

from __future__ import annotations

from collections import Counter

from transformers import PreTrainedTokenizerBase

from minillm.data.chat import messages_of, rendered
from minillm.data.sources import Row
from minillm.errors import UserError

# The published wrapper (Alpaca's, as released by the authors); "plain" is a short one for tiny models.
ALPACA = (
    "Below is an instruction that describes a task{also}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


def render(row: Row, template: str, tokenizer: PreTrainedTokenizerBase | None = None, where: str = "") -> str:
    """The prompt of a row; its response follows directly.

    "chat" is the template of `tokenizer` (chat.py).  Raises UserError, which names `where` and the row, if
    the template refuses it, and for a conversation of several turns in another template.
    """
    place = f"{where} row {row.id}"
    if template == "chat":
        if tokenizer is None:
            raise ValueError("the template 'chat' is that of a tokenizer: give one")
        return rendered(tokenizer, messages_of(row), place)
    if len(row.messages) > 1:
        problem = f"{len(row.messages)} messages before the answer, and the template '{template}' shows one"
        raise UserError(f"{place}: {problem}; set data.template: chat")
    if template == "plain":
        return f"{row.instruction}\n{row.input + chr(10) if row.input else ''}### Response:\n"
    also = ", paired with an input that provides further context" if row.input else ""
    return ALPACA.format(
        also=also, instruction=row.instruction, input=f"### Input:\n{row.input}\n\n" if row.input else ""
    )


def prompt_length(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> int:
    """Tokens of a row's prompt in the chat template of `tokenizer`."""
    return len(tokenizer.encode(render(row, "chat", tokenizer, where), add_special_tokens=False))


def holds_end(row: Row, prompt: list[int], tokenizer: PreTrainedTokenizerBase, chat: bool) -> bool:
    """Whether an EOS is written out in a row's prompt; in chat prompts also the template writes it."""
    if not chat:
        return tokenizer.eos_token_id in prompt
    return any(str(tokenizer.eos_token) in message["content"] for message in messages_of(row))


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, max_response: int, chat: bool = False
) -> tuple[list[int], list[int], Counter[str]]:
    """(prompt ids, response ids, what happened), tokenised jointly, with no special token but a final EOS.

    If joining merges tokens across the boundary, the two are tokenised separately ("boundary_merged"); so
    are `chat` prompts always, and the response is stripped: its tokens are the same after any template.  A
    response of more than `max_response` tokens, EOS included, is cut and then has no EOS ("response_cut").
    An EOS written out in the response's text ends it there ("eos_inside" if text follows), so that no
    response continues after its first EOS.
    """
    notes: Counter[str] = Counter()
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    joint = tokenizer.encode(prompt + response, add_special_tokens=False)
    if chat:
        response_ids = tokenizer.encode(response.strip(), add_special_tokens=False)
    elif joint[: len(prompt_ids)] == prompt_ids:
        response_ids = joint[len(prompt_ids) :]
    else:
        notes["boundary_merged"] += 1
        response_ids = tokenizer.encode(response, add_special_tokens=False)
    end = tokenizer.eos_token_id
    # An EOS written out at the end of the text: the response must not end twice.
    while response_ids and response_ids[-1] == end:
        response_ids = response_ids[:-1]
    if end in response_ids:
        notes["eos_inside"] += 1
        response_ids = response_ids[: response_ids.index(end)]
    response_ids = [*response_ids, end]
    if len(response_ids) > max_response:
        notes["response_cut"] += 1
        response_ids = response_ids[:max_response]
    return prompt_ids, response_ids, notes
