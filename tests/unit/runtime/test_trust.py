"""Checkpoints that others may write to are not loaded, and what is written here nobody else can change."""

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minillm.errors import UserError
from minillm.runtime import checkpoints, trust
from minillm.runtime.processes import World

WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture
def saved(tmp_path):
    """A checkpoint in a run's folder, as an engine makes them under a umask of 002."""
    before = os.umask(0o002)
    try:
        run = tmp_path / "kd-0123"
        with trust.only_ours():
            run.mkdir()
        with checkpoints.saving(run, 3, 1, 0, WORLD) as partial:
            (partial / "deepspeed").mkdir()
            (partial / "deepspeed" / "states.pt").write_text("weights")
    finally:
        os.umask(before)
    return checkpoints.newest(run, WORLD, print)


def refused(saved):
    with pytest.raises(UserError) as caught:
        checkpoints.check_resumable(saved, 1, WORLD)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_under_a_umask_of_002_is_ours_alone(saved):
    paths = [saved.folder.parent, saved.folder, *saved.folder.rglob("*")]
    assert len(paths) == 5 and not any(path.stat().st_mode & 0o022 for path in paths)
    checkpoints.check_resumable(saved, 1, WORLD)


@pytest.mark.parametrize("place", [".", "step-0000003", "step-0000003/deepspeed/states.pt"])
def test_a_world_writable_place_is_named_with_what_to_do(saved, place):
    path = (saved.folder.parent / place).resolve()
    path.chmod(path.stat().st_mode | 0o002)
    message = refused(saved)
    assert message.startswith(f"{path}: others may write it") and "chmod -R go-w" in message
    path.chmod(path.stat().st_mode & ~0o022)
    checkpoints.check_resumable(saved, 1, WORLD)


@pytest.mark.parametrize(
    ("name", "members", "allowed"), [("me", [], True), ("me", ["me", "you"], False), ("lab", [], False)]
)
def test_a_group_may_write_only_if_it_is_the_users_own(saved, monkeypatch, name, members, allowed):
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name=name, gr_mem=members))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="me"))
    saved.folder.chmod(0o775)
    if allowed:
        checkpoints.check_resumable(saved, 1, WORLD)
    else:
        assert f"group {name})" in refused(saved)


def test_files_of_another_user(saved, monkeypatch):
    """Without being root: what belongs to this user is taken for another's."""
    true = Path.lstat

    def lstat(path):
        found = list(true(path))
        found[4] += 1000 * (path.name == "states.pt")
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert "states.pt: belongs to " in refused(saved)


def test_a_file_system_without_modes_and_with_one_owner_for_all(saved, monkeypatch):
    """There a new file of ours looks like all the others, and nothing can be told from it."""
    true = os.fstat

    def fstat(number):
        found = list(true(number))
        found[0] |= 0o077
        found[4] = 4711
        return os.stat_result(found)

    for path in (saved.folder, *saved.folder.rglob("*")):
        path.chmod(0o777)
    refused(saved)
    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid())
    checkpoints.check_resumable(saved, 1, WORLD)


def test_a_pickle_of_an_earlier_version_is_not_loaded(saved):
    (saved.folder / "state.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "an earlier version saved it as a pickle" in refused(saved)


@pytest.mark.parametrize(
    ("before", "now", "fits"),
    [(0, 1, False), (1, 0, False), (3, 2, False), (1, 2, True), (2, 1, True), (0, 0, True), (3, 3, True)],
)
def test_another_zero_stage(saved, before, now, fits):
    found = checkpoints.Checkpoint(saved.folder, 3, 1, before)
    if fits:
        checkpoints.check_resumable(found, now, WORLD)
        return
    with pytest.raises(
        UserError,
        match=f"was saved under ZeRO {before}, which {now} cannot resume; set zero: {before}, or delete",
    ):
        checkpoints.check_resumable(found, now, WORLD)
