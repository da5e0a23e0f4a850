"""What a model was made from, followed through the provenance of a run's models, and under which licences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minillm.config import layout
from minillm.data.sources import resolve_path
from minillm.errors import UserError
from minillm.files import PROVENANCE, check_record
from minillm.readers import read_object, read_text

AGAIN = "make the model again"
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Ancestor:
    """A model that another was made from, in the part `role` (base, init, teacher, parent)."""

    role: str
    weights: str
    record: Mapping[str, Any]

    @property
    def source(self) -> Mapping[str, Any]:
        """Where a base model comes from: an entry of the configuration's `models`; empty for trained ones."""
        model = (self.record.get("settings") or {}).get("model")
        return model if isinstance(model, dict) else {}


def read_provenance(folder: Path) -> dict[str, Any]:
    """The record of a model folder.  Raises UserError, one line, if there is none or it is damaged."""
    path = folder / PROVENANCE
    absent = "no such file; name the folder of a model of this pipeline, such as results/RUN/models/..."
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a model")
    record = read_object(path, {"content": str, "settings": dict, "inputs": dict}, absent, AGAIN)
    check_record(record, path, AGAIN)
    return record


def lineage(run: Path, record: Mapping[str, Any]) -> list[Ancestor]:
    """All models of results/<run>, `run`, that a model with this record was made from, nearest first.

    They are found by the hash of their weights, so a model that was made again meanwhile is not among them.
    """
    models = run / layout.model("")
    by_content: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(models.rglob(PROVENANCE)):
        found = read_provenance(path.parent)
        by_content.setdefault(found["content"], (path.parent.relative_to(models).as_posix(), found))
    return list({ancestor.weights: ancestor for ancestor in _above(record, by_content)}.values())


def _above(
    record: Mapping[str, Any], by_content: Mapping[str, tuple[str, dict[str, Any]]]
) -> Iterator[Ancestor]:
    for role, content in record["inputs"].items():
        # Of equal weights the earliest counts, which is never the model itself.
        if content in by_content and content != record["content"]:
            weights, found = by_content[content]
            yield Ancestor(role, weights, found)
            yield from _above(found, by_content)


def described(source: Mapping[str, Any]) -> str:
    """A source in words: `OWNER/NAME` of the hub at a revision, a folder's name, or how it was made."""
    kind, path = source.get("source", ""), str(source.get("path", ""))
    if kind == "hub":
        return f"[{path}](https://huggingface.co/{path}) at revision `{source.get('revision') or 'main'}`"
    if kind in ("folder", "gguf"):
        # Not the whole path, which says how the user's machine is laid out.
        return f"the {'GGUF file' if kind == 'gguf' else 'folder'} `{Path(path).name}`"
    if kind == "scratch":
        return "random weights, trained here"
    return f"layers {list(source.get('layers', ()))} of `{source.get('parent', '')}`" if kind else ""


def licence_of(source: Mapping[str, Any]) -> str:
    """The licence of a source: what the configuration says, else the header of its own model card.

    `UNKNOWN` if neither is here.
    """
    kind, path = source.get("source", ""), str(source.get("path", ""))
    if source.get("licence"):
        return str(source["licence"])
    if kind in ("scratch", "pruned"):
        return "that of its parent" if kind == "pruned" else "none of others"
    card: Path | None = None
    if kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(path, "README.md", revision=source.get("revision") or "main")
        card = Path(found) if isinstance(found, str) else None
    elif kind == "folder":
        with suppress(UserError):
            card = resolve_path(path, "models.path") / "README.md"
    return _in_header(card) or UNKNOWN


def _in_header(card: Path | None) -> str:
    """`license` of the YAML between the first two lines of three dashes; "" if there is none."""
    if card is None or not card.is_file():
        return ""
    try:
        parts = read_text(card).split("---\n", 2)
        header = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    # Somebody else's file.
    except (UserError, yaml.YAMLError):
        return ""
    return " ".join(str(header.get("license", "")).split()) if isinstance(header, dict) else ""
