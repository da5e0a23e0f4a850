"""Rows of all ranks: one memory for a machine, and copies where there is none to share."""

import pickle
import threading

import pytest
import torch
from ranks import ranks

from minillm.runtime import shared_rows

LENGTHS, WIDTH = [3, 1, 4, 2, 5, 6], 7
EXPECTED = [torch.full((length, WIDTH), float(i), dtype=torch.bfloat16) for i, length in enumerate(LENGTHS)]


def gathered(size, hosts, monkeypatch, sent=None):
    """Of every rank; rank r has the rows r, r + size ... as views of one tensor."""
    local = threading.local()
    monkeypatch.setattr(shared_rows, "host", lambda: local.host)

    def rank(world):
        local.host = hosts[world.rank]
        mine = range(world.rank, len(LENGTHS), world.size)
        views = torch.cat([EXPECTED[i] for i in mine]).split([LENGTHS[i] for i in mine])
        rows = shared_rows.gathered(world, LENGTHS, dict(zip(mine, views, strict=True)))
        if sent is not None and world.size > 1:
            sent.append(sum(len(pickle.dumps(value)) for value in world.sent))
        return rows

    return ranks(size, rank)


@pytest.mark.parametrize("block", [1, 60, 2**20])
@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("hosts", ["a", "aa", "ab", "aabb", "aba"])
def test_every_rank_gets_all_rows(hosts, room, block, monkeypatch, tmp_path):
    monkeypatch.setattr(shared_rows, "FOLDER", tmp_path if room else tmp_path / "none")
    monkeypatch.setattr(shared_rows, "BLOCK", block)
    for rows in gathered(len(hosts), hosts, monkeypatch):
        assert all(map(torch.equal, rows, EXPECTED)) and len(rows) == len(EXPECTED)
    assert not list(tmp_path.iterdir())


def test_one_machine_holds_them_once(monkeypatch, tmp_path):
    """A write of one process is seen by the other; nothing of the rows is sent, and no more than they are."""
    monkeypatch.setattr(shared_rows, "FOLDER", tmp_path)
    mine, other = gathered(2, "aa", monkeypatch)
    mine[4][0, 0] = -1.0
    assert other[4][0, 0] == -1.0
    apart, too = gathered(2, "ab", monkeypatch)
    apart[4][0, 0] = -1.0
    assert too[4][0, 0] == 4.0


def test_what_is_sent(monkeypatch, tmp_path):
    big = [300] * len(LENGTHS)
    monkeypatch.setattr("test_shared_rows.LENGTHS", big)
    monkeypatch.setattr(
        "test_shared_rows.EXPECTED", [torch.full((300, WIDTH), float(i)) for i in range(len(big))]
    )
    once = sum(big) * WIDTH * 4
    monkeypatch.setattr(shared_rows, "FOLDER", tmp_path)
    shared, sent = [], []
    gathered(2, "aa", monkeypatch, shared)
    gathered(2, "ab", monkeypatch, sent)
    assert sum(shared) < 2000 < once
    assert once < sum(sent) < 1.2 * once


def test_no_room_on_one_machine(monkeypatch, tmp_path):
    """Then no machine shares: all ranks have to agree on how they exchange."""
    monkeypatch.setattr(shared_rows, "FOLDER", tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_rows.os, "posix_fallocate", full)
    for rows in gathered(2, "aa", monkeypatch):
        assert all(map(torch.equal, rows, EXPECTED))
    assert not list(tmp_path.iterdir())
