"""`minillm export-crate RUN`: a run as a Workflow Run RO-Crate, by the profile Provenance Run Crate 0.5.

https://www.researchobject.org/workflow-run-crate/profiles/0.5/provenance_run_crate/.  It holds what an
archive holds (archive.py), so that `minillm rebuild` takes its folder too, and the workflow.  Who ran it is
not recorded: no action has an agent.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from minillm.config import layout
from minillm.config.stages import STAGES
from minillm.errors import UserError
from minillm.files import PROVENANCE, whole_file, whole_folder
from minillm.publish.archive import README, check, contents, machine_paths, name_of, without_paths
from minillm.publish.crate_jobs import Job, iso, jobs_of
from minillm.readers import parse_json

SNAKEFILE = "workflow/Snakefile"
# Of the checkout, next to its configuration files.
WORKFLOW = (
    *("rules/*.smk", "workflow/schemas/*.yaml", "workflow/report/*.rst", "config/*.yaml"),
    *("pyproject.toml", "requirements.lock", "environment.yml", "LICENSE", "CITATION.cff"),
)
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
TERMS = {"resourceUsage": "https://w3id.org/ro/terms/workflow-run#resourceUsage"}
FORMATS = {
    ".json": "application/json", ".jsonl": "application/jsonl", ".csv": "text/csv", ".md": "text/markdown",
    ".tsv": "text/tab-separated-values", ".tex": "application/x-tex", ".png": "image/png",
    ".yaml": "application/yaml", ".yml": "application/yaml", ".cff": "application/yaml",
    ".toml": "application/toml", ".rst": "text/x-rst",
}  # fmt: skip
# Column of a benchmark file -> name and unit (QUDT) of what a job used.
USED = {
    "s": ("wall time", "https://qudt.org/vocab/unit/SEC"),
    "cpu_time": ("CPU time", "https://qudt.org/vocab/unit/SEC"),
    "max_rss": ("peak resident memory", "https://qudt.org/vocab/unit/MebiBYTE"),
}
LICENCE = (
    "The workflow is under Apache-2.0. Responses, metrics and records were made with models and data that "
    "have terms of their own; checklist.md names those that the run recorded."
)


def export_crate(
    run: Path,
    out: Path,
    *,
    zipped: bool = False,
    configurations: Sequence[Path] = (),
    root: Path | None = None,
) -> list[str]:
    """Write the crate of the finished run `run` (results/<run>) to the folder (or .zip) `out`; returns notes.

    configurations: the run's own configuration files, if they are not in the checkout's config/.  root: the
    checkout that has the workflow; this package's.  Raises UserError, one line, if `rocrate` is not
    installed, if there is no workflow, if `out` holds something, and as `archive` does.
    """
    library = _rocrate()
    name = name_of(run)
    if out.exists() and (zipped or not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new {'file' if zipped else 'folder'}")
    files, notes = contents(run)
    root = root or Path(str(package_files("minillm"))).parent
    files |= workflow_files(root, configurations, machine_paths(run, name))
    crate = library.ROCrate(version="1.1")
    note = _describe(library, crate, run, name, files, root)
    if zipped:
        # Not by rocrate, whose zip leaves out empty files.
        with TemporaryDirectory() as folder, whole_file(out) as partial:
            crate.write(folder)
            _zip(Path(folder), partial)
    else:
        with whole_folder(out) as partial:
            crate.write(partial)
    return [f"{out}: {len(files)} files", *notes, *filter(None, [note])]


def _rocrate() -> Any:
    try:
        import rocrate.model
        import rocrate.rocrate
    except ImportError as error:
        raise UserError(
            f"export-crate: needs rocrate ({error}); install it with: pip install '.[crate]'"
        ) from None
    return rocrate.rocrate


def _zip(folder: Path, out: Path) -> None:
    """All files of a folder in one, by name and without times."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, path.read_bytes())


def workflow_files(root: Path, configurations: Iterable[Path], prefixes: Any) -> dict[str, bytes]:
    """Name -> bytes of the workflow in the checkout `root`, and of `configurations` below configuration/."""
    if not (root / SNAKEFILE).is_file():
        raise UserError(f"{root}: has no {SNAKEFILE}; run export-crate from a checkout of the project")
    places = {SNAKEFILE: root / SNAKEFILE}
    for pattern in WORKFLOW:
        places |= {path.relative_to(root).as_posix(): path for path in sorted(root.glob(pattern))}
    for path in configurations:
        inside = f"configuration/{path.name}"
        if not path.is_file() or inside in places:
            raise UserError(
                f"{path}: {'named twice' if inside in places else 'no such file; check the path'}"
            )
        places[inside] = path
    files = {}
    for inside, path in places.items():
        content = path.read_bytes()
        if path.suffix == ".yaml":
            content = without_paths(content.decode("utf-8", "replace")).encode()
        check(content, path, prefixes)
        files[inside] = content
    return files


# --- the metadata
def _describe(library: Any, crate: Any, run: Path, name: str, files: Mapping[str, bytes], root: Path) -> str:
    """All entities, with the files; returns a note if the workflow is not of the run's revision."""
    prefix = f"{layout.run_folder(name)}/"
    records = [parse_json(c.decode(), p) for p, c in files.items() if p.endswith(f"/{PROVENANCE}")]
    jobs = jobs_of(run, {path.removeprefix(prefix) for path in files if path.startswith(prefix)})
    crate.metadata.extra_terms.update(TERMS)
    entities = _Entities(library, crate)
    for path in sorted(files):
        if path != SNAKEFILE:
            entities.file(path, files[path])
    revisions = sorted({str(record["git"]) for record in records if record.get("git")})
    here, differs = _revision(), ""
    if revisions and here not in revisions:
        differs = f"The run was made at {', '.join(revisions)}, the workflow's files are of {here}."
    workflow = crate.add_workflow(
        io.BytesIO(files[SNAKEFILE]), SNAKEFILE, main=True, lang="snakemake", properties={
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
            "name": "MiniLLM as one pipeline",
            "description": f"Distillation, evaluation, tables and figures. {differs}".strip(),
            "encodingFormat": "text/plain",
            "version": here,
            "license": "https://spdx.org/licenses/Apache-2.0",
        },
    )  # fmt: skip
    creators = [
        entities.add(kind, f"#creator-{number}", name=who)
        for number, (kind, who) in enumerate(_authors(root), 1)
    ]
    if creators:
        workflow["creator"] = creators[0] if len(creators) == 1 else creators
    packages = _packages(records)
    requires = [
        entities.add("SoftwareApplication", f"#package-{key}", name=key, softwareVersion=value)
        for key, value in packages.items()
    ]
    workflow["softwareRequirements"] = requires
    action = _actions(entities, workflow, jobs, prefix, packages)
    outputs = [
        p
        for p in sorted(files)
        if p.startswith((f"{prefix}{layout.tables()}/", f"{prefix}{layout.figures()}/"))
    ]
    outputs += [p for p in (f"{prefix}{layout.metrics_table()}", f"{prefix}{layout.index()}") if p in files]
    action["object"] = [
        crate.get(p) for p in sorted(files) if p.startswith((f"{prefix}configs/", "configuration/"))
    ]
    action["result"] = [crate.get(path) for path in outputs]
    dataset = crate.root_dataset
    crate.name = f"The run {name} of MiniLLM-repro"
    crate.description = (
        f"Settings, responses, metrics, provenance, tables and figures of the run {name}, without its "
        "models, and the workflow that made them."
    )
    ends = [job.end for job in jobs if job.end is not None]
    if ends:
        crate.datePublished = iso(max(ends))
    dataset["license"] = entities.add(
        "CreativeWork", "#licence", name="Terms of the parts", description=LICENCE
    )
    dataset["conformsTo"] = [
        entities.add("CreativeWork", profile, name=title, version=number)
        for profile, (title, number) in PROFILES.items()
    ]
    crate.get(README)["about"] = dataset
    return differs


class _Entities:
    """Adds entities to a crate."""

    def __init__(self, library: Any, crate: Any) -> None:
        from rocrate.model import ContextEntity

        self.crate, self._entity = crate, ContextEntity

    def add(self, kind: str, identifier: str, **properties: Any) -> Any:
        """A contextual entity."""
        return self.crate.add(self._entity(self.crate, identifier, properties={"@type": kind, **properties}))

    def file(self, path: str, content: bytes) -> None:
        """A file, with its size and format."""
        place = PurePosixPath(path)
        form = FORMATS.get(place.suffix, "text/plain")
        properties = {"name": place.name, "encodingFormat": form, "contentSize": str(len(content))}
        self.crate.add_file(io.BytesIO(content), path, properties=properties)


def _actions(
    entities: _Entities, workflow: Any, jobs: list[Job], prefix: str, packages: Mapping[str, str]
) -> Any:
    """The action of the whole run, and one for each job, with steps and tools; returns the first."""
    crate, add = entities.crate, entities.add
    steps: dict[str, Any] = {}
    tools: dict[str, Any] = {}
    own = packages.get("minillm", _version())
    for rule in dict.fromkeys(job.rule for job in jobs):
        what = STAGES[rule].help if rule in STAGES else f"rule {rule}"
        tools[rule] = add(
            "SoftwareApplication", f"#tool-{rule}", name=rule, description=what, softwareVersion=own
        )
        position = str(len(steps) + 1)
        steps[rule] = add("HowToStep", f"#step-{rule}", name=rule, position=position, workExample=tools[rule])
    whole = add(
        "CreateAction", "#run", name="The whole run", description="All jobs of the run.", instrument=workflow
    )
    controls, actions = [], [whole]
    for number, job in enumerate(jobs, 1):
        action = add(
            "CreateAction",
            f"#job-{number}",
            name=f"{job.rule} {job.name}",
            description=f"One job of the rule {job.rule}.",
            instrument=tools[job.rule],
            result=[crate.get(prefix + path) for path in job.outputs],
        )
        if job.inputs:
            action["object"] = [crate.get(prefix + path) for path in job.inputs]
        _times(action, [job])
        usage = [
            add(
                "PropertyValue",
                f"#job-{number}-{key}",
                name=USED[key][0],
                propertyID=f"https://snakemake.readthedocs.io/#benchmark-{key}",
                unitCode=USED[key][1],
                value=str(value),
            )
            for key, value in job.used.items()
        ]
        if usage:
            action["resourceUsage"] = usage
        actions.append(action)
        control = add(
            "ControlAction", f"#control-{number}", name=f"Step {job.rule}", instrument=steps[job.rule]
        )
        control["object"] = action
        controls.append(control)
    _times(whole, jobs)
    workflow["hasPart"] = list(tools.values())
    workflow["step"] = list(steps.values())
    engine = add(
        "SoftwareApplication",
        "https://snakemake.github.io",
        name="Snakemake",
        url="https://snakemake.github.io",
        softwareVersion=packages.get("snakemake", _version("snakemake")),
    )
    organised = add(
        "OrganizeAction", "#engine", name="Snakemake's execution", instrument=engine, result=whole
    )
    organised["object"] = controls
    crate.root_dataset["mentions"] = [*actions, organised]
    return whole


def _times(action: Any, jobs: list[Job]) -> None:
    """Start of the first job and end of the last, as far as all have them."""
    starts, ends = [job.start for job in jobs], [job.end for job in jobs]
    if starts and None not in starts:
        action["startTime"] = iso(min(filter(None, starts)))
    if ends and None not in ends:
        action["endTime"] = iso(max(filter(None, ends)))


def _packages(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Package -> its versions in the run's trainings."""
    found: dict[str, set[str]] = {}
    for record in records:
        for package, number in (record.get("packages") or {}).items():
            found.setdefault(package, set()).add(str(number))
    return {package: ", ".join(sorted(numbers)) for package, numbers in found.items()}


def _authors(root: Path) -> list[tuple[str, str]]:
    """(Person or Organization, name) of whom CITATION.cff names."""
    file = root / "CITATION.cff"
    authors = yaml.safe_load(file.read_text(encoding="utf-8")).get("authors", ()) if file.is_file() else ()
    return [
        ("Person", f"{author.get('given-names', '')} {author['family-names']}".strip())
        if "family-names" in author
        else ("Organization", str(author.get("name", "")))
        for author in authors
    ]


def _revision() -> str:
    from minillm.runtime.provenance import revision

    return revision()


def _version(package: str = "minillm") -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
