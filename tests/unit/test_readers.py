"""One reader for JSON and one for YAML: a value, or one line that names the place and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minillm import readers
from minillm.errors import UserError

DEEP = 10_000


def line_of(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice in one object"),
        ("[" * DEEP + "]" * DEEP, "nesting too deep"),
        ("1" * 5000, "a number of 5000 digits is too long"),
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ("", "not JSON (Expecting value at column 1)"),
        ('{"a": 1}\n{', "not JSON (Extra data at line 2, column 1)"),
    ],
)
def test_json_that_is_none_is_one_line(text: str, problem: str) -> None:
    with pytest.raises(UserError) as error:
        readers.parse_json(text, "here", "make it again")
    line = line_of(error)
    assert line.startswith(f"here: {problem}")
    assert line.endswith("; make it again")


def test_json_is_read_as_it_is() -> None:
    value = {"a": [1, 2.5, None, True, "ü \U0001f600"], "big": 10**40, "b": {"a": 1}}
    assert readers.parse_json(json.dumps(value), "here") == value
    assert readers.parse_json(json.dumps(value, ensure_ascii=False), "here") == value


def test_files_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "ü.json"
    path.write_bytes('{"label": "größer"}'.encode())
    code = "import sys; from minillm.readers import read_json; print(ascii(read_json(sys.argv[1])['label']))"
    answer = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == r"'gr\xf6\xdfer'"


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"gr\xf6sser")
    for name, problem in (
        ("latin", "not UTF-8 (byte 3); x"),
        ("none", "absent"),
        (".", "cannot be read: Is a d"),
    ):
        with pytest.raises(UserError) as error:
            readers.read_json(tmp_path / name, "absent", "x")
        assert problem in line_of(error)


def test_objects_have_their_keys_and_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"n": true, "x": 1}')
    assert readers.read_object(path, {"x": (int, float), "n": bool}, "", "") == {"n": True, "x": 1}
    for kinds in ({"n": int}, {"x": str}, {"y": int}, {"y": (list, type(None))}):
        with pytest.raises(UserError, match="is missing or of the wrong type; again"):
            readers.read_object(path, kinds, "", "again")
    path.write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        readers.read_object(path, {}, "", "again")


def test_json_lines_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "t": "a\u2028b"}\n{"id": 2}\n')
    assert list(readers.read_json_lines(path, {"id": int})) == [
        (1, {"id": 1, "t": "a\u2028b"}),
        (2, {"id": 2}),
    ]
    for damage in ('{"id": "2"}', "", "{", "[]"):
        path.write_text('{"id": 1}\n' + damage + "\n")
        with pytest.raises(UserError) as error:
            list(readers.read_json_lines(path, {"id": int}, again="again"))
        assert line_of(error).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", ":4: not YAML: the key 'c' is there twice; remove one"),
        ("run: 2024-05-01\n", ": run: YAML reads this as the date 2024-05-01; put it in quotes"),
        (
            "a: [x, 2024-05-01 10:00:00]\n",
            ": a.1: YAML reads this as the date 2024-05-01 10:00:00; put it in quotes",
        ),
        ("a: 2024-13-45\n", ": not YAML: month must be in 1..12"),
        ("a: &x [*x]\n", "anchors that contain themselves"),
        ("a:\n\t- 1\n", ":2: not YAML: found character '\\t' that cannot start any token"),
        ("[" * DEEP + "]" * DEEP, "nesting too deep"),
        ("a:\n  b: {c: 1, d: " + "[" * DEEP + "}\ne: 1\n" * 50, "nesting too deep"),
        ("- " * DEEP, "nesting too deep"),
        ("a: " + "1" * 5000, ": not YAML: "),
        ("a: 1" + "0" * 30, ": a: the number is too large; it must be below 2^63"),
        ("a: [.nan]", ": a.0: nan is not a finite number"),
        ("yes: 1\ntrue: 2\n", ":2: not YAML: the key 'true' is there twice; remove one"),
        ("1: a\n'1': b\n", ":2: not YAML: the key '1' is there twice; remove one"),
        ("? [1, 2]\n: a\n", ":1: not YAML: found unhashable key"),
        ("a: \x00", ": not YAML: "),
        (
            "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12)),
            "multiply",
        ),
    ],
)
def test_yaml_that_is_none_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        readers.read_yaml(path)
    line = line_of(error)
    assert line.startswith(str(path))
    assert problem in line


def test_yaml_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("x: &x {a: 1, ü: [1.5, yes, ~]}\ny:\n  <<: *x\n  a: 2\n", encoding="utf-8")
    shared = {"a": 1, "ü": [1.5, True, None]}
    assert readers.read_yaml(path) == {"x": shared, "y": shared | {"a": 2}}
