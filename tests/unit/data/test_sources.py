"""Rows and plain texts from the three sources, and each error that a user can cause, by its text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minillm.config.data import Dataset
from minillm.data import embedded_corpus
from minillm.data.sources import detokenise, read_rows, read_texts, resolve_path
from minillm.errors import UserError

GOOD = {"instruction": "Say it.", "input": "it", "output": "It."}


def write(path: Path, *lines: Any) -> Path:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


def folder(path: Path, **more: Any) -> Dataset:
    return Dataset(source="folder", path=str(path), **more)


def message(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- embedded
def test_embedded_rows_are_the_generator_s() -> None:
    rows = read_rows(Dataset(source="embedded", split="dev", rows=20), "datasets.dev")
    made = embedded_corpus.instructions("dev", 20, 0)
    assert [(r.id, r.instruction, r.input, r.outputs, r.category) for r in rows] == [
        (i, m["instruction"], m["input"], (m["output"],), m["category"]) for i, m in enumerate(made)
    ]
    assert len(read_rows(Dataset(source="embedded", split="train"), "datasets.train")) == 1000


def test_embedded_slices() -> None:
    part = read_rows(Dataset(source="embedded", split="dev", start=5, rows=10), "d")
    assert part == read_rows(Dataset(source="embedded", split="dev", rows=30), "d")[5:15]
    assert read_texts(Dataset(source="embedded", start=3, rows=4), "d") == embedded_corpus.plain_text(7)[3:]


def test_embedded_unknown_split_is_one_line() -> None:
    text = message(lambda: read_rows(Dataset(source="embedded", split="valid"), "datasets.x"))
    assert text.startswith("datasets.x: ") and "not 'valid'" in text


# --- folder: rows
def test_rows_of_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {**GOOD, "category": "open", "prompt": "ignored", "more": [1]},
        "",
        {"instruction": "No input.", "output": ["one", "two"]},
        {"instruction": "Null input.", "input": None, "output": "x\u2028y"},
        {"instruction": "Empty output.", "output": ""},
    )
    rows = read_rows(folder(path), "datasets.a")
    assert [r.id for r in rows] == [0, 1, 2, 3]
    assert [r.outputs for r in rows] == [("It.",), ("one", "two"), ("x\u2028y",), ("",)]
    assert [r.input for r in rows] == ["it", "", "", ""]
    assert [r.category for r in rows] == ["open", "", "", ""]


def test_raw_line_separators_and_bom_do_not_break_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({**GOOD, "output": "x\u2028y"}, ensure_ascii=False).encode() + b"\r\n"
    )
    assert read_rows(folder(path), "d")[0].outputs == ("x\u2028y",)


def test_slice_keeps_the_positions_of_the_source(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({**GOOD, "output": str(i)} for i in range(6)))
    rows = read_rows(folder(path, start=2, rows=3), "d")
    assert [(r.id, r.outputs[0]) for r in rows] == [(2, "2"), (3, "3"), (4, "4")]
    assert [r.id for r in read_rows(folder(path, start=4), "d")] == [4, 5]


def test_fields_rename_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "Q?", "context": "C", "response": "R"})
    names = {"instruction": "question", "input": "context", "output": "response"}
    (row,) = read_rows(folder(path, fields=names), "d")
    assert (row.instruction, row.input, row.outputs) == ("Q?", "C", ("R",))
    text = message(lambda: read_rows(folder(path, fields={"outputs": "response"}), "datasets.d"))
    known = "instruction, input, output, category, messages, options"
    assert text == f"datasets.d.fields.outputs: no such field here; known: {known}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "{broken",
            "not JSON (Expecting property name enclosed in double quotes at column 2); "
            "fix or delete this line",
        ),
        ("[1, 2]", "a row must be an object, one {...} per line; fix or delete this line"),
        ({"instruction": "a"}, "no output in the field 'output'; fix or delete this row"),
        ({"instruction": "a", "output": None}, "no output in the field 'output'; fix or delete this row"),
        ({"instruction": "a", "output": []}, "no output in the field 'output'; fix or delete this row"),
        (
            {"instruction": "a", "output": ["b", 3]},
            "the field 'output' must be text or a list of texts; fix or delete this row",
        ),
        (
            {"instruction": "a", "output": 3},
            "the field 'output' must be text or a list of texts; fix or delete this row",
        ),
        ({"output": "b"}, "no instruction in the field 'instruction'; fix or delete this row"),
        ({**GOOD, "input": 5}, "the field 'input' is not text; fix or delete this row"),
        (
            {**GOOD, "output": "\ud800 alone"},
            "half a surrogate pair (\\ud800 to \\udfff) is not text; fix or delete this line",
        ),
        ('{"a": ' + "1" * 5000 + "}", "a number of 5000 digits is too long; fix or delete this line"),
        ("[" * 100_000, "nesting too deep; fix or delete this line"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: Any, said: str) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, "", line)
    assert message(lambda: read_rows(folder(path), "datasets.a")) == f"{path}:3: {said}"


def test_whole_surrogate_pairs_and_escapes_of_them_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**GOOD, "output": "\U0001f600 \\ud800"})
    assert "\\ud83d\\ude00" in path.read_text()
    assert read_rows(folder(path), "d")[0].outputs == ("\U0001f600 \\ud800",)


def test_a_renamed_field_is_named_as_the_file_has_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"instruction": "a", "output": "b"})
    text = message(lambda: read_rows(folder(path, fields={"output": "answer"}), "d"))
    assert text == f"{path}:1: no output in the field 'answer'; fix or delete this row"


def test_invalid_utf8_names_the_line(tmp_path: Path) -> None:
    for name, read in (("a.jsonl", read_rows), ("a.txt", read_texts)):
        path = tmp_path / name
        path.write_bytes(json.dumps(GOOD).encode() + b"\n" + b'{"instruction": "caf\xe9"}\n')
        text = message(lambda path=path, read=read: read(folder(path), "d"))
        assert text == f"{path}:2: not UTF-8 (byte 21 of the line); convert the file to UTF-8"


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    gone, empty = tmp_path / "gone.jsonl", write(tmp_path / "empty.jsonl", "", "")
    expected = f"datasets.a.path: {gone}: no such file; check the path of this data set"
    assert message(lambda: read_rows(folder(gone), "datasets.a")) == expected
    assert message(lambda: read_texts(folder(gone), "datasets.a")) == expected
    assert "this is a folder; name a file in it" in message(lambda: read_rows(folder(tmp_path), "datasets.a"))
    expected = f"datasets.a: {empty}: no rows here; check path, start and rows"
    assert message(lambda: read_rows(folder(empty), "datasets.a")) == expected
    full = write(tmp_path / "full.jsonl", GOOD)
    assert "no rows here" in message(lambda: read_rows(folder(full, start=1), "datasets.a"))
    assert message(lambda: read_texts(folder(write(tmp_path / "e.txt", " ")), "d")).endswith(
        "no text here; check path, start and rows"
    )
    assert message(lambda: read_rows(Dataset(source="folder"), "datasets.a")).startswith(
        "datasets.a.path: missing;"
    )
    assert message(lambda: read_rows(Dataset(source="hub"), "datasets.a")).startswith(
        "datasets.a.path: missing;"
    )


# --- folder: texts
def test_texts_of_txt_and_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "first", "", "   ", " second , it is <unk> . ", "third")
    assert read_texts(folder(path), "d") == ["first", "second, it is.", "third"]
    assert read_texts(folder(path, start=1, rows=1), "d") == ["second, it is."]
    path = write(
        tmp_path / "a.jsonl", {"text": "two\nlines"}, {"text": " "}, {"text": "a , b"}, {"text": "c"}
    )
    assert read_texts(folder(path), "d") == ["two\nlines", "a, b", "c"]
    assert read_texts(folder(path, start=2, rows=1), "d") == ["a, b"]
    bad = write(tmp_path / "b.jsonl", {"text": "a"}, {"body": "b"})
    assert message(lambda: read_texts(folder(bad), "d")) == (
        f"{bad}:2: no text in the field 'text'; name the right one in fields: {{text: ...}}"
    )


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("a well @-@ known 1 @,@ 000 @.@ 5 km", "a well-known 1,000.5 km"),
        ("It is ( 24 in ) , and so on . Why ?", "It is (24 in), and so on. Why?"),
        ('only becoming " lobster red " on cooking .', 'only becoming "lobster red" on cooking.'),
        ("The boy 's dog did n't bark .", "The boy's dog didn't bark."),
        ("born in 1932 @,@", "born in 1932,"),
        ("= = Men 's events = =", "= = Men's events = ="),
        ("a species of <unk> lobster , <unk> , and <unk>", "a species of lobster,, and"),
        (" = Homarus gammarus = ", "= Homarus gammarus ="),
        ("  open .gitignore, then run ls . ", "open .gitignore, then run ls."),
        ("see .gitignore or x :) here", "see .gitignore or x :) here"),
        ("def f( a ): return [ a ]", "def f( a ): return [ a ]"),
    ],
)
def test_detokenise(marked: str, plain: str) -> None:
    assert detokenise(marked) == plain


# --- paths
def test_data_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    dataset = Dataset(source="folder", path="$MINILLM_DATA/a.jsonl")
    monkeypatch.setenv("MINILLM_DATA", str(tmp_path))
    assert len(read_rows(dataset, "datasets.a")) == 1
    monkeypatch.delenv("MINILLM_DATA")
    assert message(lambda: read_rows(dataset, "datasets.a")) == (
        "datasets.a.path: $MINILLM_DATA is not set; give the folder, e.g. make mini DATA=/path/to/data"
    )
    assert resolve_path("$MINILLM_DATABASE/x", "w") == Path("$MINILLM_DATABASE/x")


def test_package_paths_import_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_path("package:a_package/model.gguf", "w") == tmp_path / "a_package" / "model.gguf"
    for name in ("no_such_package", "", "no.such"):
        text = message(lambda name=name: resolve_path(f"package:{name}/x", "tokenizers.path"))
        assert text.startswith(f"tokenizers.path: the Python package '{name}' is not installed")


# --- hub
HUB = """
import json, sys
from minillm.config.data import Dataset
from minillm.errors import UserError
from minillm.data.sources import read_rows, read_texts
path, split, kind = sys.argv[1:]
try:
    read = read_rows if kind == "rows" else read_texts
    found = read(Dataset(source="hub", path=path, split=split), "datasets.hub")
    print(json.dumps([[r.id, r.instruction, r.input, r.outputs] if kind == "rows" else r for r in found]))
except UserError as error:
    print("UserError", error)
"""


def hub(tmp_path: Path, path: str, split: str = "train", kind: str = "rows") -> str:
    """In a fresh process: the hub's clients read HF_HUB_OFFLINE and their caches' places on import."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": ":".join(
            filter(None, [str(Path(embedded_corpus.__file__).parents[2]), os.environ.get("PYTHONPATH")])
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", HUB, path, split, kind],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hub_layout_in_a_local_folder_without_network(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", GOOD, {**GOOD, "input": None, "output": "b"})
    write(tmp_path / "set" / "test.jsonl", {**GOOD, "output": "c"})
    assert json.loads(hub(tmp_path, str(tmp_path / "set"))) == [
        [0, "Say it.", "it", ["It."]],
        [1, "Say it.", "", ["b"]],
    ]
    assert json.loads(hub(tmp_path, str(tmp_path / "set"), "test")) == [[0, "Say it.", "it", ["c"]]]
    said = hub(tmp_path, str(tmp_path / "set"), "nonesuch")
    assert (
        said.startswith(f"UserError datasets.hub: cannot load '{tmp_path / 'set'}' from the hub (")
        and "\n" not in said
    )


def test_hub_texts(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", {"text": ""}, {"text": "a , b"})
    assert json.loads(hub(tmp_path, str(tmp_path / "set"), kind="texts")) == ["a, b"]


@pytest.mark.parametrize("name", ["nobody/no-such-set", "nobody/no-such-set/train.jsonl"])
def test_hub_failure_is_one_line_that_names_the_set(tmp_path: Path, name: str) -> None:
    said = hub(tmp_path, name)
    assert (
        said.startswith(f"UserError datasets.hub: cannot load '{name}' from the hub (") and "\n" not in said
    )
    assert said.endswith("check name, subset, split, revision and network")


def test_one_file_of_a_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "x.jsonl", GOOD, {**GOOD, "output": ["a", "b"]}
    )  # mixed, which a table could not hold
    asked = []

    def download(*place: str, **more: Any) -> str:
        asked.append((place, more))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    rows = read_rows(Dataset(source="hub", path="owner/name/deep/x.jsonl", revision="abc", start=1), "d")
    assert [(r.id, r.outputs) for r in rows] == [(1, ("a", "b"))]
    assert asked == [(("owner/name", "deep/x.jsonl"), {"repo_type": "dataset", "revision": "abc"})]
    write(path, GOOD, "{broken")
    said = message(lambda: read_rows(Dataset(source="hub", path="owner/name/x.jsonl"), "d"))
    assert said.startswith(f"{path}:2: not JSON (")


def test_sources_and_corpus_import_no_torch() -> None:
    code = (
        "import sys, minillm.data.sources, minillm.data.embedded_corpus; "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(embedded_corpus.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
