"""`minillm methods`: the catalogue of published methods as a table, or one of its entries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from minillm.config.experiment import METHODS
from minillm.config.methods import Method, check_catalogue, facts
from minillm.config.stages import STAGES
from minillm.config.strict import hint, parse
from minillm.errors import UserError
from minillm.readers import read_yaml

CATALOGUE = Path("config/methods.yaml")
# The pipeline's own methods, which are stages and no entries.
BUILT_IN = {
    "kd": Method(
        label="KD",
        settings={},
        formula="half cross-entropy, half KL(p|q), on the gold answers",
        arxiv="2306.08543",
        source="Section 3.1, word-level KD; equation in docs/method.md",
        exact="loss and gradient",
    ),
    "seqkd": Method(
        label="SeqKD",
        settings={},
        formula="cross-entropy on texts of the teacher",
        arxiv="1606.07947",
        source="Section 3.2",
        exact="loss and gradient",
        approximated="texts are sampled; there found by beam search",
    ),
    "minillm": Method(
        label="MiniLLM",
        settings={},
        formula="KL(q|p), and -w R log q(y) for what follows; y from 0.2 p + 0.8 q",
        arxiv="2306.08543",
        source="Eq. 1 to 7, Algorithm 1",
        exact="with `semantics: paper`",
        approximated="keys of `stages.minillm`: docs/method.md lists every difference",
    ),
}


def read_catalogue(path: Path = CATALOGUE) -> dict[str, Method]:
    """The entries of a catalogue file, checked.  Raises UserError, one line naming file and entry."""
    raw = read_yaml(path)
    entries = raw.get("catalogue") if isinstance(raw, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: catalogue: missing; name methods with label and settings below it")
    catalogue = {
        str(name): parse(Method, entry, str(path), f"catalogue.{name}") for name, entry in entries.items()
    }
    check_catalogue(catalogue, {*METHODS, *STAGES}, str(path))
    return catalogue


def table(catalogue: Mapping[str, Method]) -> str:
    """Name, label, paper and formula of each method, in columns."""
    head = ("name", "label", "paper", "formula")
    rows = [head, *((name, m.label, m.arxiv or "", m.formula) for name, m in catalogue.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def entry(catalogue: Mapping[str, Method], name: str) -> str:
    """One method as YAML: label, sources and settings.  Raises UserError for an unknown name."""
    if name not in catalogue:
        raise UserError(f"{name}: no method of the catalogue; {hint(name, catalogue)}")
    method = catalogue[name]
    said = {key: value for key, value in facts(method).items() if value}
    shown: dict[str, Any] = {"label": method.label, **said, "settings": method.settings}
    return yaml.safe_dump({name: shown}, sort_keys=False, allow_unicode=True, width=100).rstrip()


def markdown_table(catalogue: Mapping[str, Method]) -> str:
    """The methods as docs/methods.md shows them: formula, source, what is exact and what is not."""
    lines = [
        "| name | method | formula | source | exact | differs | left out |",
        "|:--|:--|:--|:--|:--|:--|:--|",
    ]
    for name, m in {**BUILT_IN, **catalogue}.items():
        where = f"arXiv {m.arxiv}" if m.arxiv else f"[page]({m.url})"
        cells = [
            f"`{name}`",
            m.label,
            f"`{m.formula}`",
            f"{where}: {m.source}",
            m.exact,
            m.approximated,
            m.missing,
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def show(name: str = "") -> str:
    """What `minillm methods [NAME]` prints; call it in the checkout."""
    catalogue = read_catalogue()
    return entry(catalogue, name) if name else table(catalogue)
