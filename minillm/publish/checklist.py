"""Stage `checklist`: what a run's files say to the items of two checklists for papers (checklist.md).

REFORMS (Kapoor et al., Science Advances 10(18), 2024; arXiv 2308.07832, Table 1) has 32 items in eight
modules, NeurIPS' paper checklist (the form of 2025) 16.  Items are named by their numbers and in our own
words.  Each is either under an answer or in the list of what a run cannot answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minillm.files import whole_file
from minillm.publish import checklist_answers as answers
from minillm.publish.checklist_facts import Facts
from minillm.publish.style import markdown

# Title; items of REFORMS and of NeurIPS; who answers.
SECTIONS = (
    ("Code, and how to repeat the run", ("2b", "2d", "2e"), (4, 5), answers.code),
    ("Machines, time and energy", ("2c",), (8,), answers.compute),
    (
        "Data: sources, versions, licences, rows left out",
        ("2a", "3a", "3f", "4a", "4b", "4c"),
        (),
        answers.data,
    ),
    ("Numbers of rows, prompts and responses", ("3e",), (), answers.sizes),
    ("Splits, duplicates and overlap", ("5c", "6a", "6b"), (), answers.leakage),
    ("Models and their licences", ("5a",), (12, 13), answers.models),
    ("Seeds and settings of training and sampling", ("5e",), (6,), answers.settings),
    ("Selection of checkpoints and of settings", ("5d",), (), answers.selection),
    ("Methods compared", ("5f",), (), answers.methods),
    ("Metrics, error bars and tests", ("7a", "7b", "7c"), (7,), answers.statistics),
    ("People and models as judges", (), (14, 16), answers.judges),
)
UNANSWERED = (
    ("REFORMS 1a, 1b", "which population a claim is about, and why that one: only the paper says it"),
    ("REFORMS 1c", "why machine learning is used: only the paper says it"),
    (
        "REFORMS 3b, 3g",
        "what the data were sampled from and whether they represent it: see the data's own papers",
    ),
    ("REFORMS 3c, 3d", "why the data suit the task and what a right answer is: only the paper says it"),
    ("REFORMS 5b", "why these kinds of models were chosen: only the paper says it"),
    ("REFORMS 6c", "whether an input gives its answer away: somebody has to read the prompts"),
    (
        "REFORMS 8a, 8b",
        "whether the findings hold for other data, and where not: a run measures its own test sets",
    ),
    ("NeurIPS 1, 2, 3", "claims, limitations, proofs: they are in the paper"),
    ("NeurIPS 9, 10, 11", "ethics, effects on society, safeguards: they are the authors' to judge"),
    ("NeurIPS 15", "approval of a study with people by a review board: no file records it"),
)


def run_stage(*, run_folder: Path, out: Path) -> None:
    """Write the checklist of the run in `run_folder` (results/<run>) to `out`.

    What a file does not record is called not recorded.  Raises UserError, one line, if a file is damaged.
    """
    facts = Facts(Path(run_folder))
    lines = [
        f"# What the run {markdown(facts.name)} says to two checklists",
        "",
        "Items of REFORMS (Kapoor et al. 2024, [arXiv 2308.07832](https://arxiv.org/abs/2308.07832)) and of "
        "the [NeurIPS paper checklist](https://neurips.cc/public/guides/PaperChecklist), by number. Each "
        "answer ends with the file that it came from, below this folder or, if that begins with minillm/, of "
        "the code. It says what was done; whether that suffices is for the paper to argue.",
    ]
    for title, reforms, neurips, answer in SECTIONS:
        lines += ["", f"## {title}", "", f"{items(reforms, neurips)}.", ""]
        lines += answer(facts)
    lines += ["", "## What a run cannot answer", ""]
    lines += [f"- {names}: {why}." for names, why in UNANSWERED]
    with whole_file(out) as partial:
        partial.write_text("\n".join([*lines, ""]), encoding="utf-8")


def items(reforms: Iterable[str], neurips: Iterable[int]) -> str:
    """The items by name: "REFORMS 2b, 2d; NeurIPS 4"."""
    names = (("REFORMS", list(reforms)), ("NeurIPS", list(map(str, neurips))))
    return "; ".join(f"{name} {', '.join(numbers)}" for name, numbers in names if numbers)
