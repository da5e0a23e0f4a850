"""A teacher that is a server: what its entry of `checkpoints` must say, and what cannot be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from minillm.config import layout
from minillm.config.sections import Model
from minillm.errors import UserError

# A circle, if it were imported to run.
if TYPE_CHECKING:
    from minillm.config.experiment import Experiment

# The others need the teacher's probabilities, not only its answers.
METHODS = ("sft", "seqkd")


def check_served(config: Experiment, weights: str, model: Model, where: str) -> None:
    """Raises UserError, one line naming `where` and the key, for a server that does not do what is asked."""
    key = f"{where}: checkpoints.{weights}"
    pairs = (*config.pairs, *config.sweeps)
    teacher = next((p.teacher for p in pairs if layout.teacher_weights(p.teacher) == weights), None)
    if teacher is None:
        raise UserError(f"{key}.source: a server can only be a teacher, such as {pairs[0].teacher}/teacher")
    address = urlsplit(model.path)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError(f"{key}.path: '{model.path}' is no address; write http://HOST:PORT/v1")
    if address.username or address.password or address.query:
        raise UserError(f"{key}.path: contains a key; name a variable that holds it in key_variable")
    if not model.served_name:
        raise UserError(f"{key}.served_name: missing; name the model as the server does")
    for pair in pairs:
        methods = pair.methods or config.methods
        kinds = config.kinds
        other = next((method for method in methods if kinds.get(method, method) not in METHODS), None)
        if pair.teacher == teacher and other:
            raise UserError(
                f"{key}.source: a server has no probabilities for the method '{other}'; with this teacher "
                f"only {' and '.join(METHODS)}"
            )
    for section, names in (
        ("exposure_bias.tests", config.exposure_bias.tests),
        ("diversity.tests", config.diversity.tests),
        ("validity.tests", config.validity.tests),
        ("calibration.tasks", tuple(config.calibration.tasks)),
    ):
        if names:
            raise UserError(f"{key}.source: {section} needs the weights of every model; leave it empty")
