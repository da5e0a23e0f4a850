"""What a verification finds: differences, what was checked, and what could not be and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from minillm.errors import UserError


@dataclass
class Findings:
    """Lines for people; `folder` is the run's, and paths are below it."""

    folder: Path
    differences: list[str] = field(default_factory=list)
    # What -> how often.
    checked: Counter[str] = field(default_factory=Counter)
    # (What, why not) -> how often.
    unchecked: Counter[tuple[str, str]] = field(default_factory=Counter)

    def differs(self, path: str | Path, what: str) -> None:
        """One difference; the same one twice is one."""
        line = f"{self.below(path)}: {what}"
        if line not in self.differences:
            self.differences.append(line)

    def failed(self, path: str | Path, error: Exception) -> None:
        """A difference in the words of a stage that refuses the file, or that fails with it."""
        name = self.below(path)
        text = str(error) if isinstance(error, UserError) else f"damaged: {error!r}"
        self.differs(path, " ".join(text.replace(f"{self.folder}/", "").removeprefix(f"{name}: ").split()))

    def same(self, path: str | Path, what: str, found: object, recorded: object, detail: str = "") -> None:
        """A difference if two values are not equal; None for a recorded one: it is not recorded.

        `what` is counted, `detail` says which one it is.
        """
        if recorded is None:
            self.skip(what, "not recorded (by a version before)")
        else:
            self.checked[what] += 1
            if found != recorded:
                which = f"{what}, {detail}" if detail else what
                self.differs(path, f"{which}: recorded {_short(recorded)}, found {_short(found)}")

    def skip(self, what: str, why: str) -> None:
        """Something that was not checked."""
        self.unchecked[what, why] += 1

    def below(self, path: str | Path) -> str:
        """A path relative to the run's folder."""
        path = Path(path)
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path).as_posix()

    def summary(self) -> list[str]:
        """What was checked, what was not and why, and the verdict."""
        lines = [f"checked: {', '.join(f'{n} {what}' for what, n in sorted(self.checked.items()))}"]
        lines += [f"not checked: {n} {what}: {why}" for (what, why), n in sorted(self.unchecked.items())]
        count = len(self.differences)
        verdict = f"{count} difference{'s' * (count != 1)}" if count else "nothing differs"
        return [*lines, f"{self.folder}: {verdict}"]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 64 else f"{text[:60]} ..."
