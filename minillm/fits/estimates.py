"""What `minillm plan` prints of jobs before they run: one line for those that are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from minillm.fits import flops
from minillm.fits.changes import cheapest, fits
from minillm.fits.hours import disk, seconds
from minillm.fits.jobs import Key, Planner
from minillm.fits.machines import GB, Machine
from minillm.fits.memory import Memory, memory
from minillm.fits.sizes import bytes_of
from minillm.fits.work import Work

# Parts of the memory, as columns; caches with what a position takes, updates with what is sent.
COLUMNS = {
    "weights": ("weights",),
    "teacher": ("teacher",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "step": ("step",),
    "buckets": ("buckets",),
    "activations": ("activations",),
    "tiles": ("tiles",),
    "gathered": ("gathered",),
    "caches": ("caches", "positions"),
}
# Stages with a line for all models together, the largest one's memory.
TOGETHER = (
    "base", "generate", "samples", "exposure_bias", "reference_loss", "calibration", "mode_mass"
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Jobs that are alike: the one that takes most memory, and how many there are of each key."""

    name: str
    jobs: Counter[Key]
    largest: Work
    memory: Memory


class Estimates:
    """Works of the keys of a run's jobs, `count` of each, on several machines."""

    def __init__(self, planner: Planner, count: Counter[Key], machines: Sequence[Machine]) -> None:
        self.planner, self.machines = planner, machines
        self.works = {key: planner.work(key) for key in count}
        self.lines = self._lines(count)

    def hours(self, key: Key, machine: Machine) -> float:
        """Of one job."""
        return seconds(self.works[key], machine).hours

    def _lines(self, count: Counter[Key]) -> list[Line]:
        groups: dict[tuple[str, str, str], Counter[Key]] = {}
        for key, jobs in count.items():
            alone = key.stage not in TOGETHER
            group = (key.stage, key.model if alone else "", key.teacher if alone else "")
            groups.setdefault(group, Counter())[key] += jobs
        lines = []
        for (stage, model, teacher), keys in groups.items():
            sizes = {key: memory(self.works[key]) for key in keys}
            most = max(sizes, key=lambda key: sizes[key].peak)
            name = " ".join(filter(None, (stage, model, teacher and f"< {teacher}")))
            if stage in TOGETHER:
                name += f" ({len({key.model for key in keys})} models; most: {most.model})"
            lines.append(Line(name, keys, self.works[most], sizes[most]))
        return lines

    def text(self, chosen: Machine) -> str:
        """Two tables, and for `chosen` what makes the jobs fit that do not."""
        return "\n".join([*self._memory(), "", *self._hours(), "", *self._changes(chosen)])

    def _memory(self) -> list[str]:
        head = ["Jobs", "n", "GPUs", "parameters", *COLUMNS, "**a GPU**", "host", "disk"]
        lines = [
            "GB a GPU by part, of the largest job of each line; host: the CPU's memory of all processes, if "
            "one machine has them; disk: what stays + while it runs.",
            "",
            f"| {' | '.join(head)} |",
            f"|:--|{'--:|' * (len(head) - 1)}",
        ]
        for line in self.lines:
            parts = asdict(line.memory)
            values = [sum(parts[name] for name in names) for names in COLUMNS.values()]
            stays, meanwhile = disk(line.largest)
            cells = [
                line.name,
                str(line.jobs.total()),
                str(line.largest.launch.processes),
                f"{line.largest.student.parameters / 1e9:.3g}B",
                *(gigabytes(value) for value in values),
                f"**{gigabytes(line.memory.peak)}**",
                gigabytes(line.memory.of_cpu(line.largest.launch.processes)),
                f"{gigabytes(stays)} + {gigabytes(meanwhile)}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return lines

    def _hours(self) -> list[str]:
        head = ["Jobs", "n", "PFLOP a job", *(machine.name for machine in self.machines)]
        lines = [
            "Hours of all jobs of a line; no: does not fit.",
            "",
            f"| {' | '.join(head)} |",
            f"|:--|{'--:|' * (len(head) - 1)}",
        ]
        for line in self.lines:
            cells = [line.name, str(line.jobs.total()), f"{flops.total(line.largest) / 1e15:.3g}"]
            for machine in self.machines:
                every = sum(n * self.hours(key, machine) for key, n in line.jobs.items())
                cells.append(f"{every:.3g}" if self.fit(line, machine) else f"no ({every:.3g})")
            lines.append(f"| {' | '.join(cells)} |")
        return lines

    @staticmethod
    def fit(line: Line, machine: Machine) -> bool:
        """Whether the largest of these jobs fits."""
        return fits(line.largest, machine)

    def _changes(self, machine: Machine) -> list[str]:
        without = [line for line in self.lines if not self.fit(line, machine)]
        if not without:
            return [f"Everything fits into {machine.name} ({gigabytes(machine.room)} GB for tensors)."]
        lines = [f"Does not fit into {machine.name} ({gigabytes(machine.room)} GB for tensors):"]
        for line in without:
            key = max(line.jobs, key=lambda k: memory(self.works[k]).peak)
            needed = memory(self.works[key], machine.device)
            moment = max(needed.moments, key=needed.moments.__getitem__)
            lines.append(f"  {line.name}: {gigabytes(needed.peak)} GB, at most in its {moment}")

            def plan(launch: object, key: Key = key) -> Work:
                return self.planner.work(key, launch)  # type: ignore[arg-type]

            found = cheapest(plan, self.works[key].launch, machine)
            for change in found:
                lines.append(f"    {change}: {gigabytes(change.peak)} GB, {change.hours:.3g} h")
            if not found:
                lines.append(
                    f"    no launch value helps: sampling holds all models whole, {whole(self.works[key])} GB"
                )
        return lines


def whole(work: Work) -> str:
    """GB of one copy of all models, which a device holds while it samples."""
    return gigabytes(bytes_of(work.precision) * sum(m.parameters for m in (work.student, *work.frozen)))


def gigabytes(value: float) -> str:
    """In GB, two digits; empty for nothing."""
    return f"{value / GB:.3g}" if value else ""


def measured_first(
    keys: Mapping[int, Key], measured: Mapping[int, float], estimates: Estimates, machine: Machine
) -> dict[int, float]:
    """Hours of each job by index: as measured, if it or one like it ran, else as estimated for `machine`."""
    return {i: estimates.hours(key, machine) for i, key in keys.items()} | dict(measured)
