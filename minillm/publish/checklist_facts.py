"""The records of a run that its checklist is filled from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.config.strict import load
from minillm.files import CARD, PROVENANCE
from minillm.publish.origins import number_of, table_row
from minillm.publish.results import damage, read_json, read_text
from minillm.publish.settings import MetricsSettings
from minillm.publish.style import markdown
from minillm.readers import Kind, is_a

NOT_RECORDED = "not recorded"
# Of values of provenance.
TYPES: dict[str, Kind] = {
    **dict.fromkeys(("settings", "packages", "peak_memory_mb"), dict),
    **dict.fromkeys(("wall_seconds", "world_size"), (int, float)),
}


@dataclass(frozen=True)
class Facts:
    """What the files of results/<run>, `folder`, say of models and sets that the configuration asks for.

    Everything that reads a file raises UserError, one line, if it is damaged.
    """

    folder: Path

    @cached_property
    def settings(self) -> MetricsSettings:
        """Everything that the configuration asks to measure."""
        return load(MetricsSettings, self.folder / layout.settings_file("metrics"))

    @property
    def name(self) -> str:
        """The run's name."""
        return self.settings.table.run

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON object below the folder; None if it is not there."""
        return read_json(self.folder / path)

    def text(self, path: str) -> str | None:
        """A text below the folder; None if it is not there."""
        return read_text(self.folder / path)

    def all_json(self, pattern: str) -> dict[str, dict[str, Any]]:
        """Path below the folder -> object, of all files that fit, sorted."""
        paths = sorted(path for path in self.folder.glob(pattern) if path.is_file())
        found = {path.relative_to(self.folder).as_posix(): read_json(path) for path in paths}
        return {path: value for path, value in found.items() if value is not None}

    # --- models
    @cached_property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """Path below models/ -> provenance.json, of models measured and those that they were made from."""
        measured = {file.weights for file in self.settings.files()}
        prefix, suffix = layout.model(""), f"/{PROVENANCE}"
        every = self.all_json(f"{layout.model('**')}{suffix}")
        found = {path.removeprefix(prefix).removesuffix(suffix): record for path, record in every.items()}
        for path, record in every.items():
            with damage(self.folder / path):
                _check(record)
        return {
            weights: record
            for weights, record in found.items()
            if weights in measured or self._is_origin(weights.split("/"))
        }

    def _is_origin(self, parts: list[str]) -> bool:
        return parts[0] in self.settings.models and parts[1:2] in (["base"], ["init"], ["teacher"])

    def values(self, value_of: Callable[[dict[str, Any]], Any]) -> list[str]:
        """The values that provenance has, in words, with how many models have each; the most common first."""
        found = Counter(
            "" if value is None else str(value) for value in map(value_of, self.provenance.values())
        )
        pairs = sorted(found.items(), key=lambda pair: (not pair[0], -pair[1], pair[0]))
        return [f"{markdown(value) or NOT_RECORDED} ({counted(n, 'model')})" for value, n in pairs]

    # --- data
    @cached_property
    def tokenizers(self) -> list[str]:
        """Tokenizers of the models; each has its own folder of data."""
        return sorted({label.tokenizer for label in self.settings.models.values()})

    def cards(self) -> dict[str, dict[str, Any]]:
        """Path -> card of the training data of each tokenizer."""
        paths = (f"{layout.training_data(tokenizer)}/{CARD}" for tokenizer in self.tokenizers)
        return {path: card for path in paths if (card := self.json(path)) is not None}

    def test_cards(self) -> dict[str, dict[str, Any]]:
        """Path -> card of each test set of the configuration, in each tokenizer."""
        table, asked = self.settings.table, self.settings.asked
        names = dict.fromkeys([*table.tests, *asked.get("lengths", ())])
        paths = [layout.card(layout.test_set(tokenizer, n)) for tokenizer in self.tokenizers for n in names]
        return {path: card for path in paths if (card := self.json(path)) is not None}

    # --- jobs
    def benchmarks(self) -> dict[str, list[dict[str, float | None]]]:
        """Stage -> "s", "cpu_time", "max_rss" of each of its jobs that was measured."""
        found: dict[str, list[dict[str, float | None]]] = {}
        for path in sorted(self.folder.glob(layout.benchmark("**/*"))):
            row = table_row(read_text(path) or "")
            stage = path.relative_to(self.folder).parts[1]
            found.setdefault(stage, []).append(
                {k: number_of(row.get(k)) for k in ("s", "cpu_time", "max_rss")}
            )
        return found


def _check(record: Mapping[str, Any]) -> None:
    """TypeError for a value of provenance that is of another type than it has."""
    used = part_of(record, "peak_memory_mb", "gpu")
    for key, kind in TYPES.items():
        if record.get(key) is not None and not is_a(record[key], kind):
            raise TypeError(f"{key}: {record[key]!r}")
    if used is not None and not is_a(used, (int, float)):
        raise TypeError(f"peak_memory_mb.gpu: {used!r}")


def line(text: str, *files: str) -> str:
    """An answer with the files that it came from."""
    names = ", ".join(f"`{name}`" for name in files)
    return f"- {text} ({names})" if names else f"- {text}"


def counted(count: int, what: str) -> str:
    """ "1 model", "2 models"."""
    return f"{count} {what}{'s' * (count != 1)}"


def part_of(value: Any, *keys: str) -> Any:
    """The value at `keys`, one in another; None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many more."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def short(source: str) -> str:
    """A data source in words without whole paths of a machine: `folder .../rows.jsonl`."""
    return " ".join(f".../{Path(word).name}" if word.startswith("/") else word for word in source.split())
