"""Names and looks shared by tables and figures: a method has the same name and colour everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable

from minillm.config.sections import Sampling

METHOD_NAMES = {"teacher": "Teacher", "sft": "SFT w/o KD", "kd": "KD", "seqkd": "SeqKD", "minillm": "MiniLLM"}

METRIC_NAMES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "exact match",
    "numeric": "numeric",
    "choice": "choice",
}

# Okabe and Ito's colours, which colour-blind readers can tell apart; hatches do the same in black and white.
COLOURS = {"teacher": "#000000", "sft": "#56B4E9", "kd": "#E69F00", "seqkd": "#009E73", "minillm": "#D55E00"}
HATCHES = {"sft": "", "kd": "////", "seqkd": "....", "minillm": "xxxx"}
# Variants, in the configuration's order: the rest of the palette, each with its own hatch.
MORE = [
    ("#CC79A7", "\\\\\\\\"), ("#0072B2", "++++"), ("#F0E442", "----"), ("#999999", "oo"),
    ("#CC79A7", "////"), ("#0072B2", "...."), ("#F0E442", "xxxx"), ("#999999", "||||"),
    ("#CC79A7", "OO"), ("#0072B2", "**"), ("#F0E442", "////"), ("#999999", "...."),
    ("#CC79A7", "xxxx"), ("#0072B2", "----"), ("#F0E442", "OO"), ("#999999", "\\\\\\\\"),
]  # fmt: skip

# Lines have two more ways to tell methods apart than colour.
MARKERS = {"teacher": "", "sft": "o", "kd": "s", "seqkd": "^", "minillm": "*"}
LINES = {"teacher": "--", "sft": ":", "kd": "-.", "seqkd": "--", "minillm": "-"}
MORE_MARKERS = "DvPX<>hpd8H"
MORE_LINES = ["--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2))]

DASH = "–"
# Follows a mean over fewer training seeds than the others.
FEWER = "†"

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "†": r"$^\dagger$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(text: str) -> str:
    """`text` as one line of LaTeX, its special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.splitlines()))


def latex_row(cells: Iterable[str]) -> str:
    """The row of a LaTeX table with these cells, which are LaTeX."""
    row = " & ".join(cells) + r" \\"
    # Such a character would belong to the line break before it.
    return "{}" + row if row.startswith(("[", "*")) else row


def bold(text: str, yes: bool = True) -> str:
    """LaTeX `text`, bold if `yes`."""
    return rf"\textbf{{{text}}}" if yes else text


def markdown(text: str) -> str:
    """`text` escaped for a cell of a Markdown table or a paragraph; its lines stay lines."""
    # "&" only where it would begin a name like &lt;
    marks = r"[\\|*_<`\[$~]|&(?=#?\w+;)"
    return "<br>".join(re.sub(marks, r"\\\g<0>", line) for line in text.splitlines())


def number(mean: float | None, error: float | None) -> str:
    """ "23.3 ± 0.2", "23.3" without an error, a dash without a mean."""
    if mean is None:
        return DASH
    return f"{mean:.1f}" + ("" if error is None else f" ± {error:.1f}")


def sampling_text(sampling: Sampling) -> str:
    """How the responses were drawn, in words, with every setting."""
    ngram = sampling.no_repeat_ngram
    parts = [
        f"temperature {sampling.temperature:g}",
        f"top-p {sampling.top_p:g}" + (" (off)" if sampling.top_p == 1 else ""),
        f"top-k {sampling.top_k}" + (" (off)" if sampling.top_k == 0 else ""),
        f"no_repeat_ngram {ngram}" + (" (off)" if ngram == 0 else ""),
        f"at most {sampling.max_tokens} new tokens",
    ]
    return ", ".join(parts)
