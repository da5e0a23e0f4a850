"""Who may write to a folder of checkpoints: DeepSpeed's files are pickles, and loading one can run code.

What is written here can be changed by nobody else, whatever the umask; what others can change is not loaded.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minillm.errors import UserError

# Bits by which a group and everybody else may write.
GROUP, OTHERS = stat.S_IWGRP, stat.S_IWOTH


@contextmanager
def only_ours() -> Iterator[None]:
    """What is made meanwhile is writable by this user only: a umask of 002 is common on clusters."""
    before = os.umask(0o077)
    os.umask(before | GROUP | OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def check(folder: Path) -> None:
    """UserError if anybody but this user and root may write a checkpoint, or put another in its place.

    Looked at are the checkpoint `folder` with all that is in it, and the run's folder around it.  A group
    counts as this user if it is the user's private one (same name, nobody else in it).  On file systems that
    show one owner for all files, that owner is this user; where modes cannot be set, they are not looked at.
    """
    owners, modes = _own_files(folder.parent)
    for path in (folder.parent, folder, *sorted(folder.rglob("*"))):
        found = path.lstat()
        if found.st_uid not in owners:
            raise UserError(
                f"{path}: belongs to {_user(found.st_uid)}, and loading a checkpoint can run code that its "
                f"owner put there; that user can finish the run, or delete {folder.parent} to start over"
            )
        shared = found.st_mode & OTHERS or (found.st_mode & GROUP and not _private(found.st_gid))
        if modes and shared and not stat.S_ISLNK(found.st_mode):
            raise UserError(
                f"{path}: others may write it (mode {stat.filemode(found.st_mode)}, group "
                f"{_group(found.st_gid)}), and loading a checkpoint can run code that they put there; "
                f"if nobody did: chmod -R go-w {shlex.quote(str(folder.parent))}"
            )


def _own_files(folder: Path) -> tuple[set[int], bool]:
    """(owners that are this user or root, whether modes mean anything), seen on a new file in `folder`."""
    try:
        # Made with mode 0600.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mine-") as probe:
            made = os.fstat(probe.fileno())
    except OSError:
        return {0, os.geteuid()}, True
    return {0, os.geteuid(), made.st_uid}, not made.st_mode & (GROUP | OTHERS)


def _private(group: int) -> bool:
    """Whether a group is this user's own, as many systems make one for each user."""
    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
