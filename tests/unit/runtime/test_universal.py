"""The conversion of a checkpoint for another number of processes: apart, resumable, and with enough room."""

import subprocess
import sys
import types

import pytest
from ranks import ranks

from minillm.errors import UserError
from minillm.runtime import checkpoints, universal
from minillm.runtime.checkpoints import Checkpoint

CONVERTED = "import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'states.pt').write_text('converted')"


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "step-0000003" / "deepspeed").mkdir(parents=True)
    (tmp_path / "step-0000003" / "deepspeed" / "states.pt").write_text("of three processes")
    return Checkpoint(tmp_path / "step-0000003", 3, 3, 1)


@pytest.fixture
def begun(monkeypatch):
    """What the process that stands for the converter runs; how often it was started."""
    made = types.SimpleNamespace(code=CONVERTED, count=0)

    def start(source, partial):
        made.count += 1
        partial.mkdir(exist_ok=True)
        with open(partial / "log", "wb") as log:
            command = [sys.executable, "-c", made.code, str(partial)]
            return subprocess.Popen(command, stdout=log, stderr=log)

    monkeypatch.setattr(universal, "start", start)
    return made


def converted(saved, say=print):
    """(tags, worlds) of two ranks."""
    return zip(
        *ranks(2, lambda world: (universal.universal(saved, world, say), world)),
        strict=True,
    )


def test_no_rank_waits_in_one_collective(saved, begun, monkeypatch):
    """A conversion of a second, looked at every twentieth of one: a collective of half an hour would end."""
    monkeypatch.setattr(universal, "PAUSE", 0.05)
    begun.code = f"import time; time.sleep(1); {CONVERTED}"
    tags, worlds = converted(saved)
    assert set(tags) == {"universal"} and begun.count == 1
    assert (saved.folder / "universal" / "states.pt").read_text() == "converted"
    assert not (saved.folder / ".universal").exists()
    for world in worlds:
        assert len(world.sent) > 15


def test_a_finished_conversion_is_used_again(saved, begun, capsys):
    converted(saved)
    converted(saved)
    assert begun.count == 1 and capsys.readouterr().out.count("converted for 2") == 2
    (saved.folder / "universal" / "states.pt").write_text("damaged")
    converted(saved)
    assert begun.count == 2
    assert (saved.folder / "universal" / "states.pt").read_text() == "converted"
    # One of an earlier version has no manifest.
    (saved.folder / "universal" / checkpoints.MANIFEST).unlink()
    converted(saved)
    assert begun.count == 3


def test_one_that_fails_is_a_line_on_every_rank(saved, begun):
    begun.code = "raise ValueError('no such state')"
    with pytest.raises(UserError, match="cannot be converted for 2 processes; use 3 again.*no such state"):
        converted(saved)
    # What it has finished stays for the next attempt.
    assert (saved.folder / ".universal" / "log").exists()
    begun.code = CONVERTED
    assert set(next(iter(converted(saved)))) == {"universal"}


def test_a_full_disk_is_said_before(saved, begun, monkeypatch):
    monkeypatch.setattr(universal.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=20))
    with pytest.raises(UserError, match="the conversion needs 0.00 GB and 0.00 GB are free"):
        converted(saved)
    assert not begun.count
    # Some of it is there already.
    (saved.folder / ".universal").mkdir()
    (saved.folder / ".universal" / "part").write_text("18 bytes")
    converted(saved)
    assert begun.count == 1
