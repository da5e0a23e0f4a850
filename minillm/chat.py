"""`minillm chat MODEL [MODEL2]`: lines from stdin, answers as they are sampled, from one model or two."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from minillm.data.prompts import render
from minillm.data.sources import Row
from minillm.errors import UserError
from minillm.models.checks import in_one_line
from minillm.models.loading import load_model, load_tokenizer
from minillm.publish.model_card import trained_template

HELP = "A line is a prompt; /new forgets the conversation, /quit or the end of the input ends."


@dataclass
class Speaker:
    """A model that answers.

    template: how a line becomes a prompt; only "chat" (the tokenizer's own template) shows it the lines
    before, as the others are for one instruction.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str
    turns: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, template: str = "") -> Speaker:
        """The model in `folder`, in bf16 on a GPU or in fp32 on the CPU.

        Without `template`: as it was trained, if its run says so; else the tokenizer's own, if it has one;
        else alpaca.  Raises UserError, one line, if there is no model, or no chat template if one is asked
        for.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name the folder of a model")
        tokenizer = load_tokenizer(folder)
        own = bool(tokenizer.chat_template)
        if template == "chat" and not own:
            raise UserError(
                f"{folder}: its tokenizer has no chat template; choose --template alpaca or plain"
            )
        template = template or trained_template(folder) or ("chat" if own else "alpaca")
        gpu = torch.cuda.is_available()
        model = load_model(folder, "bf16" if gpu else "fp32", torch.device("cuda" if gpu else "cpu"))
        return cls(str(folder), model, tokenizer, template)

    def prompt(self, line: str) -> torch.Tensor:
        """Tokens of the prompt for `line`, (1, n)."""
        if self.template != "chat":
            text = render(Row(0, line, "", ("",)), self.template)
            return torch.tensor([self.tokenizer.encode(text, add_special_tokens=False)])
        try:
            encoded: Any = self.tokenizer.apply_chat_template(
                [*self.turns, {"role": "user", "content": line}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
        except Exception as error:
            # A template is a program of its own.
            raise UserError(
                f"{self.name}: its chat template fails ({in_one_line(error)}); choose another --template"
            ) from None
        tokens: torch.Tensor = encoded["input_ids"]
        return tokens

    def answer(self, line: str, temperature: float, max_tokens: int) -> str:
        """Write the answer to stdout as it is sampled, and return it; random numbers are torch's.

        Raises UserError if the prompt leaves no room for an answer.
        """
        prompt = self.prompt(line).to(self.model.device)
        places = getattr(self.model.config, "max_position_embeddings", None)
        room = min(max_tokens, places - prompt.shape[1]) if places else max_tokens
        if room < 1:
            raise UserError(
                f"{self.name}: a prompt of {prompt.shape[1]} tokens, and the model has {places} positions; "
                "write less, or /new"
            )
        sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        # What the folder's generation_config.json says of sampling is replaced; its end tokens are kept.
        config = GenerationConfig(
            max_new_tokens=room,
            repetition_penalty=1.0,
            eos_token_id=_ends(self.model, self.tokenizer),
            pad_token_id=self.tokenizer.pad_token_id,
            **(sampled if temperature > 0 else {"do_sample": False}),
        )
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        tokens = self.model.generate(  # type: ignore[operator]
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config, streamer=streamer
        )
        text = str(self.tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True))
        self.turns += [{"role": "user", "content": line}, {"role": "assistant", "content": text}]
        return text


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: of the model's own configuration, and the tokenizer's EOS."""
    of_model = getattr(model.generation_config, "eos_token_id", None)
    ends = {*(of_model if isinstance(of_model, list) else [of_model]), tokenizer.eos_token_id}
    return sorted(end for end in ends if isinstance(end, int))


def chat(
    folders: Sequence[Path],
    temperature: float = 1.0,
    seed: int = 10,
    max_tokens: int = 256,
    template: str = "",
) -> None:
    """Answer each line of stdin by every model in turn, until the end of the input.

    The n-th line is answered with seed + n by each, so equal lines get equal answers.  Raises UserError, one
    line, for options out of range and what `Speaker.load` raises.
    """
    if len(folders) > 2:
        raise UserError("one model or two, please")
    if temperature < 0 or max_tokens < 1:
        raise UserError("--temperature must be at least 0 and --max-tokens at least 1")
    speakers = [Speaker.load(folder, template) for folder in folders]
    for speaker in speakers:
        print(f"{speaker.name}: template {speaker.template}", file=sys.stderr)
    print(HELP, file=sys.stderr)
    for number, line in enumerate(_lines()):
        if line == "/new":
            for speaker in speakers:
                speaker.turns.clear()
            continue
        for speaker in speakers:
            if len(speakers) > 1:
                print(f"[{speaker.name}]", flush=True)
            torch.manual_seed(seed + number)
            try:
                speaker.answer(line, temperature, max_tokens)
            except UserError as error:
                # Of this line only: the next may fit.
                print(f"minillm chat: {error}", file=sys.stderr)


def _lines() -> Any:
    """Lines of stdin that are not empty, up to /quit, with a sign where one is typed."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()
