"""Options of multiple-choice questions, as data sets of the hub have them."""

from __future__ import annotations

import string
from typing import Any

from minillm.errors import UserError
from minillm.readers import all_are

# Label and text of each, in order.
Options = tuple[tuple[str, str], ...]


def read_options(value: Any, where: str) -> Options:
    """Labels and texts: a list of texts (labels A, B, C ...), or {"label": [...], "text": [...]} as in ARC.

    Raises UserError, one line that begins with `where`, for anything else, fewer than two options, or two
    with one label.
    """
    labels: Any
    texts: Any
    if isinstance(value, dict):
        labels, texts = value.get("label"), value.get("text")
    else:
        labels, texts = list(string.ascii_uppercase[: len(value) if isinstance(value, list) else 0]), value
    if (
        not all_are(labels, str)
        or not all_are(texts, str)
        or not 2 <= len(texts) == len(labels) == len(set(labels))
        or not all(text.strip() for text in (*labels, *texts))
    ):
        raise UserError(
            f"{where} has no options: a list of 2 to 26 texts, or different labels and as many texts "
            "({label: [...], text: [...]}); fix or delete this row"
        )
    return tuple((label.strip(), text.strip()) for label, text in zip(labels, texts, strict=True))


def right_option(options: Options, output: Any, where: str) -> tuple[str, str]:
    """Label and text of the right option; `output` is its number from 0, its label or its text.

    Raises UserError, one line that begins with `where`, if it is none of them.
    """
    if isinstance(output, int) and not isinstance(output, bool) and 0 <= output < len(options):
        return options[output]
    # A label first: the text of an option may be the label of another.
    for place in (0, 1):
        for option in options:
            if isinstance(output, str) and option[place] == output.strip():
                return option
    raise UserError(
        f"{where} names none of the options: neither a number from 0, nor a label or text of one; "
        "fix or delete this row"
    )
