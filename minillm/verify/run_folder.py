"""A run as its folder shows it: its models, their settings files and parents, its results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.config.stages import STAGES, entry_of
from minillm.config.strict import load
from minillm.config.teaching import FURTHER, USUAL
from minillm.errors import UserError
from minillm.files import CARD, PROVENANCE, settings_hash, sha256
from minillm.publish.run_models import MetricFile
from minillm.readers import read_json, read_object

AGAIN = "make it again"
LEFT = "of another configuration"


@dataclass(frozen=True)
class Run:
    """results/<run>."""

    folder: Path

    def files(self, pattern: str) -> list[Path]:
        """Files below the folder that fit, sorted."""
        return sorted(path for path in self.folder.glob(pattern) if path.is_file())

    def weights(self) -> Iterator[str]:
        """Paths below models/ of all model folders."""
        models = self.folder / layout.model("")
        for path in sorted(models.glob(f"**/{PROVENANCE}")):
            yield path.parent.relative_to(models).as_posix()

    # --- settings
    def settings(self, key: str) -> Any:
        """The settings in a file below configs/, as the stage reads them.  Raises UserError."""
        stage = key.split("/")[0]
        path = self.folder / layout.settings_file(key)
        # A trial's file names the stage that trains it, a variant's too.
        if stage not in STAGES or stage == "trial":
            stage = read_object(path, {"stage": str}, "no such settings file", "make it again")["stage"]
        entry = entry_of(stage)
        cls = entry.settings_class() if entry else None
        if cls is None:
            raise UserError(f"{path}: no stage has these settings")
        return load(cls, path)

    def settings_hash(self, key: str) -> str:
        """Hash of the settings in a file, as results record it.  Raises UserError."""
        return settings_hash(dataclasses.asdict(self.settings(key)))

    @cached_property
    def asked(self) -> list[MetricFile] | None:
        """The metric files that the run's configuration asks for; None if its settings cannot be read."""
        try:
            files: list[MetricFile] = self.settings("metrics").files()
            return files
        except UserError:
            return None

    def is_asked(self, weights: str, test: str = "") -> bool:
        """Whether the configuration asks for a model (and its results on a test set or task).

        A folder may hold more, which an earlier configuration asked for; nothing reads it any more.
        """
        if self.asked is None or weights.split("/")[1] in ("base", "init"):
            return True
        return any(file.weights == weights and test in ("", file.test_set) for file in self.asked)

    @cached_property
    def tokenizers(self) -> dict[str, str]:
        """Model -> its tokenizer, from the settings of base models and finished ones."""
        found = {}
        for stage in ("checkpoint", "base"):
            for path in self.files(layout.settings_file(f"{stage}/**/*")):
                name = path.relative_to(self.folder / layout.settings_file(stage).removesuffix(".json"))
                value = read_json(path)
                if isinstance(value, dict) and isinstance(value.get("model"), dict):
                    found[name.with_suffix("").parts[0]] = str(value["model"].get("tokenizer"))
        return found

    def data(self, weights: str) -> Path:
        """The data folder of a model.  Raises UserError if no settings name its tokenizer."""
        name = weights.split("/")[0]
        if name not in self.tokenizers:
            raise UserError(f"{self.folder / layout.model(weights)}: no settings name its tokenizer")
        return self.folder / layout.training_data(self.tokenizers[name])

    def test(self, weights: str, test: str) -> Path:
        """A test set in the tokens of a model."""
        self.data(weights)
        return self.folder / layout.test_set(self.tokenizers[weights.split("/")[0]], test)

    # --- models
    def settings_key(self, weights: str, stage: str) -> str:
        """The settings file of a model; `stage` as in its provenance."""
        name, method, *rest = weights.split("/")
        if stage == "base" and method != "base":
            return f"checkpoint/{weights}"
        if method in ("base", "teacher"):
            return f"{method}/{name}"
        seed = rest[-1].removeprefix("seed")
        if method in ("sft", "init"):
            return f"sft/{name}/{seed}"
        return f"{method}/{name}/{rest[0]}/{seed}"

    def parent(self, weights: str, role: str, provenance: dict[str, Any]) -> Path:
        """The folder or file that was an input of a model's training; UserError for an unknown role."""
        name, _, *rest = weights.split("/")
        if role == "data":
            return self.data(weights)
        if role == "base":
            return self.folder / layout.model(layout.base_weights(name))
        if role == "parent":
            return self.folder / layout.model(layout.base_weights(provenance["settings"]["model"]["parent"]))
        if role == "init":
            return self.folder / layout.model(layout.init_weights(name, rest[-1].removeprefix("seed")))
        if role == "teacher":
            return self.folder / layout.model(layout.teacher_weights(rest[0]))
        if role == "pseudo":
            return self.folder / layout.pseudo_answers(self.tokenizers[rest[0]], rest[0])
        if role == "grid":
            return self.folder / layout.grid_choice(self.grid_key(weights))
        if role == "teacher_data":
            return self.data(layout.teacher_weights(rest[0]))
        if role == "prompts":
            shown = provenance["settings"]["training"]["teacher"]
            model = rest[0] if shown["who"] == "pair" else name
            return self.folder / layout.teaching_data(self.tokenizers[model], shown["prompt"] or USUAL)
        if role.startswith(FURTHER):
            return self.folder / layout.model(layout.teacher_weights(role.removeprefix(FURTHER)))
        raise UserError(f"{self.folder / layout.model(weights)}: unknown kind of input '{role}'")

    def grid_key(self, weights: str) -> str:
        """The path of a student's grid below grid/, without its ending."""
        name, method, *rest = weights.split("/")
        method = "sft" if method == "init" else method
        return layout.grid_key(method, name, rest[0])

    # --- recorded paths
    def place(self, recorded: str) -> Path:
        """Where a path is that a result records: in this folder, wherever it is now, or outside of a run."""
        inside = re.fullmatch(r"(?:.*/)?results/[^/]+/(.+)", recorded)
        return self.folder / inside[1] if inside else Path(recorded)


def metric_of(run: Run, path: Path) -> tuple[str, str, str, str]:
    """(kind, weights, test set or task, teacher of exposure bias) of a metric file, from its path."""
    kind, *parts = path.relative_to(run.folder / "metrics").with_suffix("").parts
    teacher = parts.pop(0) if kind == "exposure_bias" else ""
    return kind, "/".join(parts[:-1]), parts[-1], teacher


def content(path: Path) -> str | None:
    """What a folder's own record says of it, or a file's hash; None if there is neither."""
    if path.is_file():
        return sha256(path)
    for name in (PROVENANCE, CARD):
        if (path / name).is_file():
            return str(read_object(path / name, {"content": str}, "no such file", AGAIN)["content"])
    return None
