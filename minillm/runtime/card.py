"""README.md of a model folder: a model card in the hub's form, written from provenance.json alone.

It is not among the files whose hashes provenance.json records, so it may be edited or written again.
`minillm card` (publish/model_card.py) adds what only a run's folder knows: measurements, lineage, prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

README = "README.md"
METHODS = {
    "base": "base model",
    "teacher": "fine-tuning on the training rows",
    "sft": "fine-tuning on the training rows, without a teacher",
    "kd": "word-level distillation on the training rows",
    "seqkd": "sequence-level distillation: fine-tuning on the teacher's responses",
    "minillm": "MiniLLM: on-policy distillation by reverse KL",
}
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = "OWNER/NAME"  # or the path of this folder
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokens = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")
answer = model.generate(**tokens, do_sample=True, max_new_tokens=256)
print(tokenizer.decode(answer[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def model_card(
    record: Mapping[str, Any],
    *,
    name: str = "",
    header: Mapping[str, Any] | None = None,
    sections: Mapping[str, str] | None = None,
) -> str:
    """The card, in Markdown, of the model with this provenance.

    name: what to call it.  header: further keys of the card's YAML header.  sections: title -> Markdown,
    shown before settings and origin.
    """
    settings = record.get("settings") or {}
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["minillm", "knowledge-distillation"],
        **(header or {}),
    }
    method = settings.get("method") or settings.get("stage") or ""
    facts = {
        "method": METHODS.get(method, _variant(settings, method) if method else ""),
        "teacher": settings.get("teacher", ""),
        "adapter": _adapter(settings.get("adapter")),
        "training seed": settings.get("seed", ""),
        "learning rate": _from_grid(record.get("grid")),
        "optimizer steps": record.get("steps", ""),
        "precision": settings.get("precision", ""),
        "weights, SHA-256": f"`{record.get('content', '')}`",
    }
    inputs = record.get("inputs") or {}
    facts |= {f"input {key}, SHA-256": f"`{value}`" for key, value in inputs.items()}
    table = ["| | |", "|:--|:--|", *(f"| {k} | {v} |" for k, v in facts.items() if v not in ("", "``"))]
    return (
        "\n\n".join(
            [
                f"---\n{_yaml(head)}---",
                f"# {name or _name(settings, method)}",
                "Made by the pipeline `minillm`, which reproduces *MiniLLM: Knowledge Distillation of Large "
                "Language Models* ([arXiv 2306.08543](https://arxiv.org/abs/2306.08543)).",
                "\n".join(table),
                *(f"## {title}\n\n{text}" for title, text in (sections or {}).items()),
                f"## Use\n\n{USE}",
                f"## Settings\n\n```yaml\n{_yaml(settings)}```",
                f"## Origin\n\n{_origin(record)}",
            ]
        )
        + "\n"
    )


def _variant(settings: Mapping[str, Any], method: str) -> str:
    base = settings.get("stage")
    if base in ("kd", "seqkd"):
        return f"{METHODS[base]}, variant `{method}`"
    return f"on-policy distillation, variant `{method}`"


def _name(settings: Mapping[str, Any], method: str) -> str:
    model = settings.get("model")
    name = model if isinstance(model, str) else ""
    return ", ".join(filter(None, [name, method])) or "Model"


def _adapter(values: Any) -> str:
    """What was trained in place of all weights; "" if they were."""
    if not isinstance(values, Mapping):
        return ""
    targets = ", ".join(values.get("targets") or ["all linear layers of the decoder blocks"])
    return (
        f"LoRA, rank {values.get('rank')}, alpha {values.get('alpha'):g}, dropout {values.get('dropout'):g}, "
        f"on {targets}; merged here, and by itself in `adapter/`"
    )


def _from_grid(grid: Any) -> str:
    """The learning rate that a grid has chosen, and how; "" without a grid."""
    if not isinstance(grid, Mapping):
        return ""
    chosen, rates = grid["chosen"], [f"{row['lr']:g}" for row in grid["candidates"]]
    tried = ", ".join(dict.fromkeys(rates))
    return f"{chosen['lr']:g}, by {grid['rule']} of short runs with {tried}" + (
        f"; {grid['edge']}" if grid.get("edge") else ""
    )


def _origin(record: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in (record.get("packages") or {}).items())
    lines = [
        f"- command: `{record['command']}`" if record.get("command") else "",
        f"- commit of the code: `{record.get('git', 'unknown')}`",
        f"- processes: {record['world_size']}" if "world_size" in record else "",
        f"- packages: {packages}" if packages else "",
        "- everything else: `provenance.json`",
    ]
    return "\n".join(filter(None, lines))


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
