"""A run in one file: tables come out of it byte by byte, and nothing of this machine goes in."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from made_up_run import REPO, config, make, put

from minillm.config import layout
from minillm.config.derive import canonical, stage_settings
from minillm.errors import UserError
from minillm.files import RECORD, record_hash, write_json
from minillm.publish.archive import LIST, archive, digest, kept_files, unpack
from minillm.verify.published import jobs
from minillm.verify.rebuild import main, rebuild
from minillm.verify.run_folder import Run

# Of scores, responses, logs and run times, published numbers.
ITEMS = ("table2", "table5", "table8", "cost", "fidelity")
RUN = Path("results/plan")
WEIGHTS = "base/minillm/xl/seed10"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's folder with a finished run, weights and other files that no archive has."""
    root = tmp_path_factory.mktemp("archived")
    run, experiment = root / RUN, config(small=True)
    assert layout.run_folder(experiment.run) == RUN.as_posix()
    make(run, experiment)
    shutil.copytree(REPO / "config/paper", root / "config/paper")
    for key in ("table", "metrics", *(f"publish/{name}" for name in ITEMS)):
        stage, _, name = key.partition("/")
        names = {"name": name} if name else {}
        put(run, layout.settings_file(key), canonical(stage_settings(experiment, stage, **names)))
    for path in (
        f"models/{WEIGHTS}/model.safetensors",
        f"models/{WEIGHTS}/tokenizer.json",
        "data/letters/training/train.jsonl",
        "human/base/dolly.html",
        "judge-cache/a.json",
        "logs/table.log",
        "checkpoints/kd-1/state.json",
        "tables/.main.csv.partial",
        ".env",
    ):
        put(run, path, "not for others")
    # As `evaluation` writes it, but called by hand with whole paths.
    path = run / layout.metric("rouge", WEIGHTS, "dolly")
    sources = [str(run.absolute() / layout.generations(WEIGHTS, "dolly"))]
    write_json(path, json.loads(path.read_text()) | {"sources": sources})
    publish(root)
    return root


def publish(root: Path) -> None:
    """All tables of the run, as the rules make them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for key, place, make_item in jobs(RUN, ("table",)):
            if (RUN / layout.settings_file(key)).is_file():
                make_item(RUN / place, Run(RUN).settings(key))


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which the test runs; recorded paths of the other place stay what they are."""
    shutil.copytree(made, tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    return tmp_path


def tables(run: Path) -> dict[str, bytes]:
    files = [*(run / "tables").glob("[!.]*"), run / "metrics.csv"]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def test_tables_come_out_of_the_archive_byte_by_byte(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(RUN, root / "run.tar.gz")
    before = tables(RUN)
    assert len(before) == 4 * len(ITEMS) + 3 + 1
    shutil.rmtree(root / "checkout/results")
    # Somewhere else, where no published numbers are.
    monkeypatch.chdir(root)
    unpack(root / "run.tar.gz", root / "there")
    assert not list((root / "there").rglob("*.safetensors")) and Path.cwd() == root
    findings = rebuild(root / "there")
    assert findings.differences == [] and findings.checked["tables byte by byte"] == len(before)
    assert tables(root / "there/rebuilt") == before


def test_it_holds_what_items_read_and_nothing_else(root: Path) -> None:
    archive(RUN, root / "run.tar.gz")
    unpack(root / "run.tar.gz", root / "there")
    held = {p.relative_to(root / "there").as_posix() for p in (root / "there").rglob("*") if p.is_file()}
    below = {name.removeprefix(f"{RUN}/") for name in held if name.startswith(f"{RUN}/")}
    assert below == set(kept_files(RUN))
    assert held - {f"{RUN}/{name}" for name in below} == {
        *("README.md", LIST),
        *(f"config/paper/{path.name}" for path in (REPO / "config/paper").glob("*.csv")),
    }
    for path in sorted((root / "there").rglob("*")):
        assert not path.is_file() or b"not for others" not in path.read_bytes(), path
    assert {path.split("/")[0] for path in below} == {
        *("benchmarks", "configs", "data", "generations", "metrics", "metrics.csv", "models", "tables"),
    }
    for name in ITEMS:
        assert set(json.loads((RUN / f"tables/{name}.json").read_text())["sources"]) <= below


def test_the_same_run_gives_the_same_bytes(root: Path) -> None:
    archive(RUN, root / "a.tar.gz")
    for path in RUN.rglob("*"):
        path.touch()
    shutil.copytree(RUN, root / "elsewhere/results/plan")
    archive(RUN, root / "b.tar.gz")
    archive(root / "elsewhere/results/plan", root / "c.tar.gz")
    first = (root / "a.tar.gz").read_bytes()
    assert first == (root / "b.tar.gz").read_bytes() == (root / "c.tar.gz").read_bytes()
    with tarfile.open(root / "a.tar.gz") as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode) for e in entries} == {(0, 0, 0, "", "", 0o644)}


def test_a_change_is_a_difference(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive(RUN, root / "run.tar.gz")
    assert main(root / "run.tar.gz", root / "there", False) == 0
    assert capsys.readouterr().out.endswith(f"{RUN}: nothing differs\n")
    metric = root / "there" / RUN / f"metrics/diversity/{WEIGHTS}/dolly.json"
    metric.write_text(metric.read_text().replace("1000", "1001"))
    (root / "there" / RUN / "tables/table2.csv").unlink()
    put(root / "there" / RUN, "tables/more.csv", "a,b")
    assert main(root / "there", None, False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"metrics/diversity/{WEIGHTS}/dolly.json: has changed since it was archived" in lines
    assert "tables/table5.csv: is not what the archive gives (rebuilt/tables/table5.csv)" in lines
    assert "tables/table2.csv: is not in the archive" in lines
    assert "tables/more.csv: is in the archive, but nothing of the archive makes it" in lines
    assert not any(line.startswith(("tables/main", "tables/table8")) for line in lines)


# --- nothing of this machine
def test_paths_of_this_machine_are_replaced(root: Path) -> None:
    here = str(Path.cwd())
    path = RUN / f"models/{WEIGHTS}/provenance.json"
    command = f"minillm kd --config {here}/{RUN}/configs/a.json --data '/data/my/rows.jsonl' --x=/opt/y/z 1/2"
    model = {"path": "/home/me/models/gpt2", "note": "and/or", "url": "https://a.b/c/d"}
    record = json.loads(path.read_text())
    record["settings"]["model"] = model
    write_json(path, record | {"command": command})
    lines = archive(RUN, root / "run.tar.gz")
    unpack(root / "run.tar.gz", root / "there")
    found = json.loads((root / "there" / path).read_text())
    assert found["command"] == (
        f"minillm kd --config {RUN}/configs/a.json --data 'elsewhere/rows.jsonl' --x=elsewhere/z 1/2"
    )
    assert found["settings"]["model"] == model | {"path": "elsewhere/gpt2"}
    assert found[RECORD] == record_hash(found)
    replaced = json.loads((root / "there" / LIST).read_text())["paths_replaced"]
    assert path.as_posix() in replaced and f"{RUN}/metrics.csv" not in replaced
    assert f"replaced in {len(replaced)} files" in lines[1]
    for file in (root / "there").rglob("*"):
        assert not file.is_file() or here.encode() not in file.read_bytes(), file
    assert rebuild(root / "there").differences == []


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (f"generations/{WEIGHTS}/dolly.jsonl", "sesame-0f3a-open", r"holds the value of \$MY_API_KEY"),
        (f"benchmarks/kd/{WEIGHTS}.tsv", "s c2VzYW1lLTBmM2Etb3Blbg", r"holds the value of \$MY_API_KEY"),
        ("configs/judge.json", '{"key": "hf_' + "a" * 34 + '"}', "holds what looks like a key"),
        ("configs/judge.json", "{", "not JSON"),
        ("metrics.csv", "HERE/results/x", "holds the path .* of this machine"),
    ],
)
def test_what_may_not_leave_the_machine_is_refused(
    path: str, text: str, message: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "sesame-0f3a-open")
    put(RUN, path, text.replace("HERE", str(Path.cwd())))
    with pytest.raises(UserError, match=f"{path}: {message}") as error:
        archive(RUN, root / "run.tar.gz")
    assert "sesame" not in str(error.value) and not (root / "run.tar.gz").exists()


def test_only_a_finished_run_is_archived(root: Path) -> None:
    with pytest.raises(UserError, match="nothing: no run here"):
        archive(root / "nothing", root / "run.tar.gz")
    (RUN / "metrics.csv").unlink()
    with pytest.raises(UserError, match="has no tables yet"):
        archive(RUN, root / "run.tar.gz")


# --- unpacking what somebody else made
def packed(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with gzip.open(path, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def entry(name: str, **values: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/tmp/out", "a//b", "./a", "a\\..\\b", "c:/a", ".."]
)
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    file = packed(tmp_path / "a.tar.gz", [(entry("fine"), b"x"), (entry(name), b"x")])
    with pytest.raises(UserError, match="refused name"):
        unpack(file, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_only_plain_files_are_unpacked(kind: bytes, tmp_path: Path) -> None:
    file = packed(
        tmp_path / "a.tar.gz", [(entry("a", type=kind, linkname="../b"), b""), (entry("a/b"), b"x")]
    )
    with pytest.raises(UserError, match="'a' is not a plain file"):
        unpack(file, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz"]


@pytest.mark.parametrize("name", ["a/b", "b" * 300])
def test_what_cannot_be_written_is_one_line(name: str, tmp_path: Path) -> None:
    file = packed(tmp_path / "a.tar.gz", [(entry("a"), b"x"), (entry(name), b"x")])
    with pytest.raises(UserError, match="cannot be written"):
        unpack(file, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz"]


def listed(files: dict[str, bytes], **changed: Any) -> bytes:
    hashes = {name: digest(content) for name, content in files.items()}
    record = {"format": "minillm-archive-1", "run": "a", "files": hashes, **changed}
    return json.dumps(record | {RECORD: record_hash(record)}).encode()


@pytest.mark.parametrize(
    ("files", "index", "message"),
    [
        ({"a": b"x"}, listed({"a": b"y"}), "a is not what archive.json says"),
        ({"a": b"x", "b": b"y"}, listed({"a": b"x"}), "b is not what archive.json says"),
        ({"a": b"x"}, listed({"a": b"x", "b": b""}), "b is not what archive.json says"),
        ({"a": b"x"}, listed({"a": b"x"}, run="../up"), "names files outside"),
        ({"a": b"x"}, listed({"../a": b"x"}), "names files outside"),
        ({"a": b"x"}, listed({"a": b"x"}, format="minillm-archive-9"), "use the version that made it"),
        ({"a": b"x"}, listed({"a": b"x"}).replace(b'"run": "a"', b'"run": "b"'), "has changed"),
        ({"a": b"x"}, b"{", "not JSON"),
        ({"a": b"x"}, None, "not an archive of a run"),
    ],
)
def test_a_damaged_archive_is_refused(
    files: dict[str, bytes], index: bytes | None, message: str, tmp_path: Path
) -> None:
    entries = [(entry(name), content) for name, content in files.items()]
    if index is not None:
        entries.append((entry(LIST), index))
    file = packed(tmp_path / "a.tar.gz", entries)
    with pytest.raises(UserError, match=message):
        unpack(file, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz"]


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "cut").write_bytes(
        packed(tmp_path / "b", [(entry("a"), bytes(range(256)) * 99)]).read_bytes()[:99]
    )
    twice = packed(tmp_path / "twice", [(entry("a"), b"x"), (entry("a"), b"y")])
    for file, message in (
        (tmp_path / "a", "no archive"),
        (tmp_path / "cut", "no archive"),
        (tmp_path / "none", "no such file"),
        (twice, "refused name 'a'"),
    ):
        with pytest.raises(UserError, match=message):
            unpack(file, tmp_path / "there")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(UserError, match="is not empty"):
        unpack(twice, tmp_path / "full")
    with pytest.raises(UserError, match="name a new folder for it with -o"):
        main(twice, None, False)
    with pytest.raises(UserError, match="not an archive of a run"):
        main(tmp_path / "full", None, False)
    with pytest.raises(UserError, match="leave -o away"):
        main(tmp_path / "full", tmp_path / "there", False)
