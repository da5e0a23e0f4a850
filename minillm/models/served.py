"""A model folder without weights: its model answers at an address (`source: server`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from minillm.config.sections import Model
from minillm.files import SERVED, write_json
from minillm.readers import read_object


@dataclass(frozen=True)
class Served:
    """Address of OpenAI's form (http://HOST:PORT/v1), the model's name there, the variable of the key."""

    address: str
    model: str
    key_variable: str


def write_served(folder: Path, spec: Model) -> None:
    """Write what `spec` says of a server into a model folder."""
    served = Served(spec.path.rstrip("/"), spec.served_name or "", spec.key_variable or "")
    write_json(folder / SERVED, dataclasses.asdict(served))


def read_served(folder: Path) -> Served | None:
    """The server that takes the place of this folder's weights; None if it has weights.

    Raises UserError if the file is damaged.
    """
    if not (folder / SERVED).is_file():
        return None
    kinds = {field.name: str for field in dataclasses.fields(Served)}
    values = read_object(folder / SERVED, kinds, "no such file", "make the folder again")
    return Served(**{name: values[name] for name in kinds})
