"""The kinds of faults: each disturbs one stage in a copy of a finished run, and says how that ended.

All of them end in `again`: the same command, which must leave the bytes of the undisturbed run.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from faults_case import EXACT, SKIPPED, Case, Failed, Outcome, line_of, remove
from faults_checkout import Ended, contents, differences
from faults_stages import OTHERS, READ_BY, STAGES, Stage

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


def interrupt(case: Case, rng: random.Random, send: Callable[[int], None]) -> tuple[Ended, float]:
    """Start the command, `send` at a random moment of the stage; the output, and the moment in seconds.

    Of a stage that was faster, an earlier moment is tried.
    """
    longest = case.seconds
    for _ in range(5):
        case.clear()
        process = case.checkout.start(*case.targets)
        case.begun(process)
        moment = rng.uniform(0, longest)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        hit = process.poll() is None and case.checkout.stage_processes()
        if hit:
            send(process.pid)
        ended = case.checkout.finish(process)
        if hit:
            return ended, moment
        longest /= 3
    raise Failed("every moment was too late")


def kill_stage(case: Case, rng: random.Random) -> Outcome:
    """A signal to a process of the stage (of two: one of them, or torchrun)."""
    name = rng.choice(sorted(SIGNALS))

    def send(_: int) -> None:
        pids = case.checkout.stage_processes()
        case.checkout.send(SIGNALS[name], [rng.choice(pids)] if pids else [])

    ended, moment = interrupt(case, rng, send)
    what = f"{name} after {moment:.2f} s"
    case.noted(ended)
    how, seen = case.again()
    return Outcome(how, what, seen)


def kill_snakemake(case: Case, rng: random.Random) -> Outcome:
    """A signal to Snakemake alone, to it and its job (Ctrl-C, `kill -- -GROUP`), or a power cut."""
    name, whom = rng.choice(
        [
            *((name, "Snakemake") for name in SIGNALS),
            ("SIGINT", "all"),
            ("SIGTERM", "all"),
            ("SIGKILL", "all"),
        ]
    )

    def send(pid: int) -> None:
        if whom == "Snakemake":
            os.kill(pid, SIGNALS[name])
        elif name == "SIGKILL":
            case.checkout.end_all()
        else:
            os.killpg(pid, SIGNALS[name])

    ended, moment = interrupt(case, rng, send)
    case.noted(ended)
    how, seen = case.again()
    return Outcome(how, f"{name} to {whom} after {moment:.2f} s", seen)


def orphan(case: Case, rng: random.Random) -> Outcome:
    """SIGKILL to Snakemake alone, whose job goes on; unlocked, and started again while it still runs."""
    jobs: list[int] = []

    def send(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        # These stages take seconds, as long as Snakemake takes to start: real ones would still be running.
        jobs.extend(other for other in case.checkout.processes() if other != pid)
        case.checkout.send(signal.SIGSTOP, jobs)

    ended, moment = interrupt(case, rng, send)
    what = f"Snakemake killed after {moment:.2f} s, started again while its job runs"
    case.noted(ended)
    case.noted(case.checkout.snakemake("--unlock"))
    process = case.checkout.start(*case.targets)
    case.wait_for(process, lambda: set(case.checkout.stage_processes()) - set(jobs))
    time.sleep(rng.uniform(0, case.seconds / 2))
    case.checkout.send(signal.SIGCONT, jobs)
    second = case.noted(case.checkout.finish(process))
    line = line_of(second.output)
    if second.status and not line:
        raise Failed(f"{what}: ends with {second.status} and no clear line")
    how, seen = case.again(line if second.status else "")
    return Outcome(how, what, seen)


def pause(case: Case, rng: random.Random) -> Outcome:
    """SIGSTOP to everything, SIGCONT seconds later: it must go on to a good end."""
    seconds = rng.uniform(3, 6)

    def send(_: int) -> None:
        pids = case.checkout.processes()
        case.checkout.send(signal.SIGSTOP, pids)
        time.sleep(seconds)
        case.checkout.send(signal.SIGCONT, pids)

    ended, moment = interrupt(case, rng, send)
    what = f"all processes stopped for {seconds:.1f} s after {moment:.2f} s"
    if case.noted(ended).status:
        raise Failed(f"{what}: ends with {ended.status}: {line_of(ended.output)}")
    how, seen = case.again()
    return Outcome(how, what, seen)


def two_at_once(case: Case, rng: random.Random) -> Outcome:
    """A second Snakemake in the same folder: it says that it cannot, or waits; the first goes on."""
    case.clear()
    first = case.checkout.start(*case.targets)
    case.begun(first)
    time.sleep(rng.uniform(0, case.seconds / 2))
    second = case.noted(case.checkout.snakemake(*case.targets))
    done = case.noted(case.checkout.finish(first))
    if second.status and not line_of(second.output):
        raise Failed(f"the second ends with {second.status} and no clear line")
    if done.status:
        raise Failed(f"the first ends with {done.status}: {line_of(done.output)}")
    how, seen = case.again()
    return Outcome(how, f"the second: {line_of(second.output) or 'ended well'}", seen)


def clock(case: Case, rng: random.Random) -> Outcome:
    """What a clock that was set back leaves: times of files in the future or the past.

    No clock is set: that is what os.utime is for, as libfaketime need not be installed.
    """
    what = rng.choice(["inputs a day ahead", "outputs a day ago", "everything an hour ahead"])
    now = time.time()
    if what != "outputs a day ago":
        case.clear()
    made = [case.run / path for path in case.stage.outputs]
    others = [path for path in case.run.rglob("*") if not any(path.is_relative_to(own) for own in made)]
    times = {
        "inputs a day ahead": (others, now + 86400),
        "outputs a day ago": ([*made, *(path for own in made for path in own.rglob("*"))], now - 86400),
        "everything an hour ahead": (list(case.run.rglob("*")), now + 3600),
    }
    paths, then = times[what]
    before = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    for path in before:
        os.utime(path, (then, then))
    ended = case.snakemake()
    line = line_of(ended.output)
    if ended.status and not line:
        raise Failed(f"{what}: ends with {ended.status} and no clear line")
    if ended.status:
        # What the line asks for: the clock is right again.
        for path, value in before.items():
            if path.exists():
                os.utime(path, ns=(value, value))
    how, seen = case.again(line if ended.status else "")
    return Outcome(how, what, seen)


@contextmanager
def mounted(*arguments: str):
    """A mount for as long as the block runs; yields what mount said if it could not."""
    made = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    try:
        yield made.stderr.strip()
    finally:
        if not made.returncode:
            subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


def unmount(folder: Path) -> None:
    """Unmount what a campaign that was killed has left mounted in a folder."""
    mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    for place in [line.split(" ")[1] for line in mounts]:
        if Path(place).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", place], check=False)


def full_disk(case: Case, rng: random.Random) -> Outcome:
    """The run's folder on a small disk (tmpfs), on which only some KB are left."""
    case.clear()
    left = rng.choice([0, 4, 16, 64, 256]) * 1024
    away = case.run.with_name("away")
    case.run.rename(away)
    case.run.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(case.run)) as problem:
        if problem:
            return Outcome(SKIPPED, "full disk", f"no small disk can be mounted: {problem}")
        shutil.copytree(away, case.run, dirs_exist_ok=True)
        state = os.statvfs(case.run)
        (case.run / "filler").write_bytes(bytes(max(state.f_bavail * state.f_frsize - left, 0)))
        ended = case.snakemake()
        line = line_of(ended.output)
        if ended.status and not re.search(r"disk|space|could not be saved", line):
            raise Failed(f"{left} bytes left: ends with {ended.status} and no clear line; {line}")
        (case.run / "filler").unlink()
        how, seen = case.again(line if ended.status else "")
    return Outcome(how, f"disk full but for {left} bytes", seen)


def read_only(case: Case, rng: random.Random) -> Outcome:
    """The folder that the stage writes to, mounted read-only (which holds for root too)."""
    case.clear()
    folder = (case.run / case.stage.outputs[0]).parent
    with mounted("--bind", str(folder), str(folder)) as problem:
        if problem:
            return Outcome(SKIPPED, "read-only folder", f"no bind mount: {problem}")
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        ended = case.snakemake()
        line = line_of(ended.output)
        if not ended.status or "ead-only" not in line:
            raise Failed(f"ends with {ended.status} and no clear line; {line}")
    how, seen = case.again(line)
    return Outcome(how, f"{folder.relative_to(case.run)} is read-only", seen)


DAMAGE = ("truncated", "one bit flipped", "deleted", "a folder in its place", "empty")


def damage(path: Path, rng: random.Random, kinds: tuple[str, ...] = DAMAGE) -> str:
    """Damage a file; what was done."""
    kind, content = rng.choice(kinds), path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: rng.randrange(len(content) or 1)])
    elif kind == "one bit flipped" and content:
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        kind += f" (bit {bit} of byte {place} of {len(content)})"
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if kind == "a folder in its place":
            path.mkdir()
    return f"{path.name} {kind}"


def damaged_result(case: Case, rng: random.Random, pattern: str) -> Outcome:
    """A result that the stage reads is damaged: a line says so, or it is made again."""
    path = rng.choice(sorted(path for path in case.run.glob(pattern) if path.is_file()))
    name = path.relative_to(case.run).as_posix()
    what = damage(path, rng)
    damaged = path.read_bytes() if path.is_file() else None
    if READ_BY[pattern]:
        case.clear()
    ended = case.snakemake()
    line = line_of(ended.output)
    if ended.status and not line:
        raise Failed(f"{what}: ends with {ended.status} and no clear line")
    if not ended.status:
        different = differences(case.expected, contents(case.run))
        if not different and damaged is not None and path.read_bytes() == damaged:
            different = [f"{name} differs in times or memory"]
        if not different:
            return Outcome(EXACT, what)
        line = noticed(case, name)
        if not line:
            raise Failed(f"{what}: nothing notices; {'; '.join(different[:4])}")
        case.clear()
    # What the line asks for: the result is made again.
    remove(made_with(case, name))
    how, seen = case.again(line)
    return Outcome(how, what, seen)


def noticed(case: Case, name: str) -> str:
    """What `minillm verify` says of a result; "" if it does not name it, or there is no such command."""
    command = [case.checkout.python, "-m", "minillm", "verify", str(case.run)]
    done = subprocess.run(
        command, cwd=case.checkout.folder, env=case.checkout.environment, capture_output=True, text=True
    )
    names = (name, made_with(case, name).relative_to(case.run).as_posix())
    lines = [line for line in (done.stdout + done.stderr).splitlines() if any(n in line for n in names)]
    return f"verify: {lines[0]}"[:400] if done.returncode and lines else ""


def made_with(case: Case, name: str) -> Path:
    """The output of a job that a file belongs to: the file, or the folder of data or of a model."""
    parts = name.split("/")
    if parts[0] == "models":
        end = next(
            i for i, part in enumerate(parts) if part.startswith("seed") or part in ("base", "teacher")
        )
        return case.run.joinpath(*parts[: end + 1])
    if parts[0] == "data" and parts[2] == "training":
        return case.run.joinpath(*parts[:3])
    return case.run / name


def damaged_state(case: Case, rng: random.Random) -> Outcome:
    """What a killed stage left to resume from (checkpoints, journal) is damaged."""
    path = rng.choice(killed_with_state(case, rng))
    what = damage(path, rng)
    case.noted(case.checkout.snakemake("--unlock"))
    ended = case.snakemake()
    if not ended.status:
        case.compare()
        return Outcome(EXACT, what)
    line = line_of(ended.output)
    if not line:
        raise Failed(f"{what}: ends with {ended.status} and no clear line")
    remove(path)
    how, seen = case.again(line)
    return Outcome(how, what, seen)


def killed_with_state(case: Case, rng: random.Random) -> list[Path]:
    """Kill the stage after it has saved something; the files that it left to resume from."""
    folder = (case.run / case.stage.outputs[0]).parent

    def states() -> list[Path]:
        saved = list(case.run.glob("checkpoints/*/step-*/**/*"))
        journals = [*case.run.glob("checkpoints/pseudo*"), *folder.glob(".*of*")]
        return sorted(path for path in saved + journals if path.is_file() and path.stat().st_size)

    longest = case.seconds / 3
    for _ in range(5):
        case.clear()
        process = case.checkout.start(*case.targets)
        if not case.wait_for(process, states):
            raise Failed(f"nothing was saved: {line_of(case.noted(case.checkout.finish(process)).output)}")
        time.sleep(rng.uniform(0, longest))
        case.checkout.end_all()
        process.wait()
        if found := states():
            return found
        case.noted(case.checkout.snakemake("--unlock"))
        longest /= 4
    raise Failed("every moment was too late")


KINDS: dict[str, Callable[..., Outcome]] = {
    "kill of a stage": kill_stage,
    "kill of Snakemake": kill_snakemake,
    "orphaned job": orphan,
    "stopped and continued": pause,
    "two Snakemakes": two_at_once,
    "clock set back": clock,
    "full disk": full_disk,
    "read-only folder": read_only,
    "damaged result": damaged_result,
    "damaged checkpoint or journal": damaged_state,
}
SAVING = ("base", "teacher", "sft", "kd", "seqkd", "minillm", "minillm, two processes")
SAVING += ("pseudo", "generate", "generate, two processes")


def a_round(rng: random.Random) -> list[tuple[str, str]]:
    """(kind, stage or pattern of the damaged file) in random order: every stage, every kind of file."""
    chosen = [("kill of a stage", stage) for stage in STAGES]
    for kind, number in {"kill of Snakemake": 8, "stopped and continued": 3, "two Snakemakes": 3}.items():
        chosen += [(kind, stage) for stage in rng.sample(sorted(STAGES), number)]
    chosen += [("clock set back", stage) for stage in rng.sample(sorted(STAGES), 4)]
    chosen += [("full disk", stage) for stage in rng.sample(sorted(STAGES), 5)]
    chosen += [("read-only folder", stage) for stage in rng.sample(sorted(STAGES), 3)]
    chosen += [("damaged result", pattern) for pattern in READ_BY]
    chosen += [("damaged checkpoint or journal", stage) for stage in SAVING]
    rng.shuffle(chosen)
    return chosen + [
        ("orphaned job", stage) for stage in rng.sample(["sft", "minillm", "generate", "data"], 3)
    ]


def stage_of(kind: str, name: str) -> Stage:
    """The stage that is disturbed; of a damaged result, the one that reads it, or that made it."""
    if kind != "damaged result":
        return STAGES[name]
    every = STAGES | OTHERS
    return every[READ_BY[name]] if READ_BY[name] else next(s for s in every.values() if name in s.outputs)
