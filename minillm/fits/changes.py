"""Launch values under which a job fits, found by trying them: the cheapest in hours of all its devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from minillm.config.launch import Launch
from minillm.errors import UserError
from minillm.fits.hours import seconds
from minillm.fits.machines import Machine
from minillm.fits.memory import least, memory
from minillm.fits.work import Work

# How many changes are shown.
BEST = 3


@dataclass(frozen=True)
class Change:
    """New launch values by key, the bytes and hours that the job then takes, and hours times devices."""

    values: dict[str, Any]
    peak: int
    hours: float
    cost: float

    def __str__(self) -> str:
        return ", ".join(f"{key}: {str(value).lower()}" for key, value in self.values.items())


def fits(work: Work, machine: Machine) -> bool:
    """Whether the tensors of `work` have room."""
    launch = work.launch
    if machine.device == "cpu" and launch.processes * least(work) > machine.room:
        # Without a look at its activations, which take longer to find.
        return False
    return memory(work, machine.device).on(machine.device, launch.processes) <= machine.room


def cheapest(plan: Callable[[Launch], Work], launch: Launch, machine: Machine) -> list[Change]:
    """At most `BEST` changes of `launch`, the cheapest first, each of which makes `plan`'s work fit.

    A value that is not needed is not named.  [] if nothing that can be set helps.
    """
    found: list[Change] = []
    for values in sorted(_candidates(plan(launch), machine), key=len):
        if not any(change.values.items() <= values.items() for change in found):
            found += _tried(plan, dataclasses.replace(launch, **values), values, machine)
    found.sort(key=lambda change: (change.cost, len(change.values)))
    # First the best of each set of keys: a still smaller batch is hardly another change.
    first = {tuple(change.values): change for change in reversed(found)}
    rest = [change for change in found if first[tuple(change.values)] is not change]
    chosen = [*sorted(first.values(), key=found.index), *rest][:BEST]
    return sorted(chosen, key=found.index)


def _tried(
    plan: Callable[[Launch], Work], launch: Launch, values: dict[str, Any], machine: Machine
) -> list[Change]:
    try:
        work = plan(launch)
        if not fits(work, machine):
            return []
    # Processes that do not divide the batch.
    except UserError:
        return []
    hours = seconds(work, machine).hours
    peak = memory(work, machine.device).on(machine.device, launch.processes)
    return [Change(values, peak, hours, hours * launch.processes)]


def _candidates(work: Work, machine: Machine) -> Iterator[dict[str, Any]]:
    """Every combination of larger ZeRO stages, smaller batches ..., as far as the job has such values."""
    launch = work.launch
    options: dict[str, list[Any]] = {"eval_batch": _halves(launch.eval_batch)}
    if work.steps:
        options |= {
            "zero": [zero for zero in (1, 2, 3) if zero > launch.zero],
            "micro_batch": _halves(launch.micro_batch),
            "gradient_checkpointing": [] if launch.gradient_checkpointing else [True],
        }
        if machine.device == "cuda":
            options["offload"] = [] if launch.offload else [True]
            if work.frozen:
                options["shard_teacher"] = [] if launch.shard_teacher else [True]
    if work.steps and machine.device == "cuda":
        options["processes"] = [2 * launch.processes, 4 * launch.processes]
    for chosen in product(*([None, *values] for values in options.values())):
        values = {key: value for key, value in zip(options, chosen, strict=True) if value is not None}
        # Offloading needs ZeRO 2, sharding several processes.
        alone = values.get("processes", launch.processes) == 1
        if values.get("offload") and values.get("zero", launch.zero) < 2:
            continue
        if values.get("shard_teacher") and alone:
            continue
        if values:
            yield values


def _halves(value: int) -> list[int]:
    """Half of a value, a quarter ... down to 1."""
    halves = []
    while value > 1:
        value //= 2
        halves.append(value)
    return halves
