"""The campaigns' own logic: what is tried, what counts as equal, and what is printed."""

import random

import pytest
from determinism import compared
from faults import plan, table
from faults_case import line_of
from faults_checkout import contents, differences
from faults_kinds import DAMAGE, KINDS, SAVING, a_round, damage, stage_of
from faults_stages import READ_BY, STAGES


def test_a_round_disturbs_every_stage_and_damages_every_kind_of_file():
    faults = a_round(random.Random(1))
    assert {kind for kind, _ in faults} == set(KINDS)
    assert {name for kind, name in faults if kind == "kill of a stage"} == set(STAGES)
    assert {name for kind, name in faults if kind == "damaged result"} == set(READ_BY)
    assert {name for kind, name in faults if kind.startswith("damaged checkpoint")} == set(SAVING)
    assert len(faults) >= 60 and all(stage_of(*fault) for fault in faults)


def test_a_plan_is_the_same_for_a_seed_and_goes_on():
    assert plan(200, 3)[:50] == plan(50, 3) != plan(50, 4)


@pytest.mark.parametrize(
    ("name", "before", "after", "equal"),
    [
        ("models/m/model.safetensors", b"ab", b"ac", False),
        ("models/m/metrics.jsonl", b'{"loss": 1, "seconds": 2}\n', b'{"loss": 1, "seconds": 3}\n', True),
        ("models/m/metrics.jsonl", b'{"loss": 1, "seconds": 2}\n', b'{"loss": 2, "seconds": 2}\n', False),
        ("models/m/provenance.json", b'{"wall_seconds": 2}', b'{"wall_seconds": 3}', True),
        ("models/m/provenance.json", b'{"wall_seconds": 2}', b'{"wall_sec', False),
        ("metrics.csv", b"a,wall_hours,1\nb,rouge,2\n", b"a,wall_hours,3\nb,rouge,2\n", True),
        ("metrics.csv", b"a,wall_hours,1\nb,rouge,2\n", b"a,wall_hours,1\nb,rouge,3\n", False),
        ("tables/cost.csv", b"1\n", b"2\n", True),
        ("tables/cost.csv", b"1\n", b"", False),
        ("report.html", b"<html>1</html>\n", b"<html>2</html>\n", True),
        ("report.html", b"<html>1</html>\n", b"<html>2</ht", False),
    ],
)
def test_equal_but_for_times(tmp_path, name, before, after, equal):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(before)
    first = contents(tmp_path)
    path.write_bytes(after)
    assert differences(first, contents(tmp_path)) == ([] if equal else [f"{name} differs"])


def test_what_is_missing_or_left_behind_differs(tmp_path):
    assert differences({"a": "1"}, {".b.partial": "2"}) == ["a is missing", ".b.partial was left behind"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_changes_a_file(tmp_path, kind):
    path = tmp_path / "file.json"
    path.write_bytes(b"some bytes")
    said = damage(path, random.Random(0), (kind,))
    assert kind in said and (not path.is_file() or path.read_bytes() != b"some bytes")
    if kind == "one bit flipped":
        changed = [a ^ b for a, b in zip(path.read_bytes(), b"some bytes", strict=True) if a != b]
        assert len(changed) == 1 and changed[0].bit_count() == 1


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("x\n  minillm rouge: error: a.json: not JSON\n", "minillm rouge: error: a.json: not JSON"),
        ("Error: config.yaml: run: missing\n", "Error: config.yaml: run: missing"),
        ("CalledProcessError in file\nTraceback\n", ""),
    ],
)
def test_a_clear_line_is_one_of_ours(output, line):
    assert line_of(output) == line


def test_the_table_counts_and_names_failures():
    record = {"number": 0, "kind": "full disk", "stage": "kd", "what": "w", "seen": "bytes differ"}
    lines = table([record | {"how": "failed"}, record | {"number": 1, "how": "exact"}]).splitlines()
    assert [line.split()[-5:] for line in lines if line.startswith("all")] == [["2", "1", "0", "1", "0"]] * 2
    assert lines[-1] == "   0 failed   full disk, kd: w; bytes differ"


def test_determinism_counts_by_kind():
    first = {"models/m/model.safetensors": "1", "metrics.csv": "2", "index.md": "3"}
    counts, unequal = compared(first, first | {"metrics.csv": "other", "metrics/new.json": "4"})
    assert unequal == ["metrics/new.json", "metrics.csv"]
    assert counts == [
        ("weights", 1, 1),
        ("generations", 0, 0),
        ("metrics", 1, 0),
        ("csv", 1, 0),
        ("the rest", 1, 1),
    ]
