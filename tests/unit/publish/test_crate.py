"""A run as a Workflow Run RO-Crate: what the profile asks for, and what must not be in it.

The validator itself (roc-validator) needs an older `rich` than the pipeline's tools: `make test-crate`
installs it in an environment of its own and runs the last test here with it.
"""

from __future__ import annotations

import base64
import builtins
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from made_up_run import BENCHMARK, REPO, config, make, put

from minillm.config import layout
from minillm.config.derive import canonical, stage_settings
from minillm.errors import UserError
from minillm.publish.archive import kept_files
from minillm.publish.crate_jobs import iso, jobs_of
from minillm.verify.rebuild import rebuild

VALIDATOR = os.environ.get("MINILLM_ROC_PYTHON")
RUN = Path("results/plan")
WEIGHTS = "base/minillm/xl/seed10"
ROUGE = f"metrics/rouge/{WEIGHTS}/dolly.json"
ANSWERS = f"generations/{WEIGHTS}/dolly.jsonl"
START = 1_700_000_000.25


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in a checkout, with Snakemake's records of four jobs."""
    experiment = config(small=True)
    run = make(tmp_path / "checkout" / RUN, experiment)
    put(run, layout.settings_file("metrics"), canonical(stage_settings(experiment, "metrics")))
    put(run, layout.settings_file("rouge"), "{}")
    for name in ("tables/main.csv", "tables/main.md", "metrics.csv", "index.md", "figures/a.png"):
        put(run, name, "1")
    path = run / f"models/{WEIGHTS}/provenance.json"
    packages = {"minillm": "0.1.0", "snakemake": "9.27.1", "torch": "2.13.0"}
    put(run, f"models/{WEIGHTS}/provenance.json", json.loads(path.read_text()) | {"packages": packages})
    for name in ("model.safetensors", "tokenizer.json"):
        put(run, f"models/{WEIGHTS}/{name}", "not for others")
    put(run, f"benchmarks/generate/{WEIGHTS}/dolly.tsv", BENCHMARK)
    records: dict[str, dict[str, Any]] = {
        f"models/{WEIGHTS}": job("minillm", "minillm/a", ["configs/rouge.json", "data/x"], 0, 100),
        ANSWERS: job("generate", "generate/a", [f"models/{WEIGHTS}"], 100, 110),
        ROUGE: job("rouge", "rouge/a", [ANSWERS, "configs/rouge.json"], 110, 111),
        "tables/main.csv": job("table", "table", [ROUGE], 111, 120),
        "tables/main.md": job("table", "table", [ROUGE], 111, 120),
        "logs/gone.csv": job("gone", "gone", [], 0, 1),
    }
    for output, record in records.items():
        name = base64.b64encode(f"{RUN}/{output}".encode(), altchars=b"-_").decode()
        put(tmp_path / "checkout/.snakemake/metadata", name, record)
    put(tmp_path / "checkout/.snakemake/metadata", "no record", "{")
    put(tmp_path / "checkout/.snakemake/metadata", base64.b64encode(b"results/other/a").decode(), "{}")
    monkeypatch.chdir(tmp_path / "checkout")
    return RUN


def job(rule: str, log: str, inputs: list[str], start: float, end: float) -> dict[str, Any]:
    return {
        "rule": rule,
        "input": ["minillm/files.py", *(f"{RUN}/{path}" for path in inputs)],
        "log": [f"{RUN}/logs/{log}.log"],
        "starttime": START + start,
        "endtime": START + end,
    }


def crate_of(run: Path, out: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Identifier -> entity of the crate that is written to `out`."""
    pytest.importorskip("rocrate", reason="rocrate is not installed here (extra `crate`)")
    from minillm.publish.crate import export_crate

    export_crate(run, out, root=REPO, **options)
    graph = json.loads((out / "ro-crate-metadata.json").read_text())["@graph"]
    assert len(graph) == len({entity["@id"] for entity in graph})
    return {entity["@id"]: entity for entity in graph}


def ids(value: Any) -> list[str]:
    return [item["@id"] for item in (value if isinstance(value, list) else [value])]


def of_type(entities: dict[str, dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [entity for entity in entities.values() if kind in entity["@type"]]


def test_the_crate_is_a_provenance_run_crate(run: Path, tmp_path: Path) -> None:
    entities = crate_of(run, tmp_path / "crate")
    root, workflow = entities["./"], entities["workflow/Snakefile"]
    assert {identifier.rsplit("/", 1)[0] for identifier in ids(root["conformsTo"])} == {
        *(f"https://w3id.org/ro/wfrun/{name}" for name in ("process", "workflow", "provenance")),
        "https://w3id.org/workflowhub/workflow-ro-crate",
    }
    assert ids(root["mainEntity"]) == ["workflow/Snakefile"] and root["license"] and root["datePublished"]
    assert set(workflow["@type"]) == {"File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"}
    assert entities[ids(workflow["programmingLanguage"])[0]]["name"] == "Snakemake"
    rules = {"minillm", "generate", "rouge", "table"}
    assert set(ids(workflow["hasPart"])) == {f"#tool-{rule}" for rule in rules}
    assert set(ids(workflow["step"])) == {f"#step-{rule}" for rule in rules}
    actions = of_type(entities, "CreateAction")
    assert {ids(action["instrument"])[0] for action in actions} == {
        "workflow/Snakefile",
        *ids(workflow["hasPart"]),
    }
    assert set(ids(root["mentions"])) == {"#engine", *(action["@id"] for action in actions)}
    for control in of_type(entities, "ControlAction"):
        (step,), (action,) = ids(control["instrument"]), ids(control["object"])
        assert ids(entities[step]["workExample"]) == ids(entities[action]["instrument"])
    engine = entities["#engine"]
    assert set(ids(engine["object"])) == {c["@id"] for c in of_type(entities, "ControlAction")}
    assert ids(engine["result"]) == ["#run"]
    assert entities[ids(engine["instrument"])[0]]["softwareVersion"] == "9.27.1"
    assert entities["#package-torch"]["softwareVersion"] == "2.13.0"
    assert not any("agent" in action for action in actions) and not of_type(entities, "Person")


def test_actions_say_what_each_job_made_of_what_and_when(run: Path, tmp_path: Path) -> None:
    entities = crate_of(run, tmp_path / "crate")
    actions = {action["name"]: action for action in of_type(entities, "CreateAction")}

    def said(name: str) -> tuple[set[str], set[str], str, str]:
        action = actions[name]
        files = (set(ids(action.get("object", []))), set(ids(action["result"])))
        inside = [{path.removeprefix(f"{RUN}/") for path in part} for part in files]
        return inside[0], inside[1], action["startTime"], action["endTime"]

    logs = {f"models/{WEIGHTS}/{name}" for name in ("provenance.json", "metrics.jsonl", "selection.json")}
    assert said("minillm minillm/a") == (
        {"configs/rouge.json"}, logs, "2023-11-14T22:13:20+00:00", "2023-11-14T22:15:00+00:00"
    )  # fmt: skip
    assert said("generate generate/a")[:2] == (logs, {ANSWERS})
    assert said("rouge rouge/a")[:2] == ({ANSWERS, "configs/rouge.json"}, {ROUGE})
    assert said("table table")[:2] == ({ROUGE}, {"tables/main.csv", "tables/main.md"})
    whole = said("The whole run")
    assert whole[0] == {"configs/metrics.json", "configs/rouge.json"}
    assert whole[1] == {"tables/main.csv", "tables/main.md", "figures/a.png", "metrics.csv", "index.md"}
    assert whole[2:] == ("2023-11-14T22:13:20+00:00", iso(START + 120))
    assert entities["./"]["datePublished"] == iso(START + 120)
    used = {entities[i]["name"]: entities[i] for i in ids(actions["generate generate/a"]["resourceUsage"])}
    assert used["wall time"]["value"] == "7200.0" and used["wall time"]["unitCode"].endswith("/SEC")
    assert used["CPU time"]["value"] == "10800.0" and used["peak resident memory"]["value"] == "2048.0"
    assert "resourceUsage" not in actions["rouge rouge/a"]


def test_it_holds_the_run_the_workflow_and_no_weights(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("run: plan\ndatasets: {a: {path: /data/me/rows.jsonl}} # either/or\n")
    out = tmp_path / "crate"
    entities = crate_of(run, out, configurations=[mine])
    held = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert held == {e["@id"] for e in of_type(entities, "File")} | {"ro-crate-metadata.json"}
    assert {f"{RUN}/{path}" for path in kept_files(run)} <= held
    assert {"workflow/Snakefile", "rules/students.smk", "config/demo.yaml", "requirements.lock"} <= held
    text = (out / "configuration/mine.yaml").read_text()
    assert text == "run: plan\ndatasets: {a: {path: elsewhere/rows.jsonl}} # either/or\n"
    assert "configuration/mine.yaml" in ids(entities["#run"]["object"])
    assert set(ids(entities["./"]["hasPart"])) == {e["@id"] for e in of_type(entities, "File")}
    here = str(Path.cwd()).encode()
    for path in out.rglob("*"):
        assert not path.is_file() or not {b"not for others", here} & {
            part for part in (b"not for others", here) if part in path.read_bytes()
        }, path
    # It is an archive too.
    findings = rebuild(out)
    assert findings.checked["files with the archive's list"] and not any(
        "archived" in line for line in findings.differences
    )


def test_one_file_holds_the_same(run: Path, tmp_path: Path) -> None:
    crate_of(run, tmp_path / "crate")
    from minillm.publish.crate import export_crate

    export_crate(run, tmp_path / "crate.zip", zipped=True, root=REPO)
    with zipfile.ZipFile(tmp_path / "crate.zip") as file:
        found = {name: file.read(name) for name in file.namelist()}
    folder = {p.relative_to(tmp_path / "crate").as_posix(): p for p in (tmp_path / "crate").rglob("*")}
    assert found == {name: path.read_bytes() for name, path in folder.items() if path.is_file()}


def test_without_snakemakes_records_nothing_is_said_of_times(run: Path, tmp_path: Path) -> None:
    (run.resolve().parents[1] / ".snakemake").rename(tmp_path / "away")
    jobs = {job.name: job for job in jobs_of(run, kept_files(run))}
    assert all(job.start is job.end is None and not job.inputs for job in jobs.values())
    made = jobs[f"generate/{WEIGHTS}/dolly"]
    assert made.rule == "generate" and made.outputs == [ANSWERS]
    assert made.used == {"s": 7200.0, "cpu_time": 10800.0, "max_rss": 2048.0}
    entities = crate_of(run, tmp_path / "crate")
    assert not any("endTime" in action for action in of_type(entities, "CreateAction"))


def test_refusals(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("rocrate", reason="rocrate is not installed here (extra `crate`)")
    from minillm.publish.crate import export_crate

    with pytest.raises(UserError, match="has no workflow/Snakefile; run export-crate from a checkout"):
        export_crate(run, tmp_path / "crate", root=tmp_path)
    with pytest.raises(UserError, match="no run here"):
        export_crate(tmp_path, tmp_path / "crate", root=REPO)
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        export_crate(run, tmp_path / "crate", root=REPO, configurations=[tmp_path / "none.yaml"])
    with pytest.raises(UserError, match="checkout: is there already; name a new folder"):
        export_crate(run, tmp_path / "checkout", root=REPO)
    with pytest.raises(UserError, match="checkout: is there already; name a new file"):
        export_crate(run, tmp_path / "checkout", root=REPO, zipped=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout"]


def test_without_rocrate_one_line_says_how_to_get_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minillm.publish.crate import export_crate

    real = builtins.__import__

    def absent(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == "rocrate":
            raise ModuleNotFoundError("No module named 'rocrate'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    for name in [name for name in sys.modules if name.split(".")[0] == "rocrate"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"needs rocrate \(.*\); install it with: pip install '.\[crate\]'"):
        export_crate(run, tmp_path / "crate", root=REPO)


@pytest.mark.skipif(not VALIDATOR, reason="MINILLM_ROC_PYTHON names no environment: make test-crate")
def test_the_validator_accepts_it(run: Path, tmp_path: Path) -> None:
    """All that the four profiles and RO-Crate 1.1 require; and a crate that lacks one thing is refused."""
    crate_of(run, tmp_path / "crate")

    def validated() -> subprocess.CompletedProcess[str]:
        program = [str(VALIDATOR), str(REPO / "tests/helpers/validate_crate.py"), str(tmp_path / "crate")]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(program, capture_output=True, text=True, timeout=900, env=environment)

    found = validated()
    assert found.returncode == 0 and found.stdout.startswith("valid: "), found.stdout + found.stderr
    metadata = tmp_path / "crate/ro-crate-metadata.json"
    metadata.write_text(metadata.read_text().replace('"ControlAction"', '"Action"'))
    found = validated()
    assert found.returncode == 1 and "provenance-run-crate" in found.stdout
