"""The answers of the checklist: each a list of Markdown lines, every one with the file that it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from minillm.config import layout
from minillm.files import PROVENANCE
from minillm.publish.checklist_facts import NOT_RECORDED, Facts, counted, line, listed, part_of, short
from minillm.publish.lineage import described, licence_of
from minillm.publish.results import damage
from minillm.publish.style import markdown, sampling_text

OF_MODELS = f"{layout.model('**')}/{PROVENANCE}"
SELECTIONS = f"{layout.model('**')}/selection.json"
OF_DATA = layout.settings_file("data/*")
METRICS = layout.settings_file("metrics")


def code(facts: Facts) -> list[str]:
    """Revision, versions, and how to repeat the run."""
    lines = [_common(facts, "git revision of the code", "git")]
    versions: dict[str, Counter[str]] = {}
    for record in facts.provenance.values():
        for name, version in (record.get("packages") or {}).items():
            versions.setdefault(name, Counter())[str(version)] += 1
    said = [f"{name} {' and '.join(sorted(found))}" for name, found in versions.items()]
    lines.append(line(f"versions of packages: {', '.join(said) or NOT_RECORDED}", OF_MODELS))
    lines += [
        line("settings of every stage, which with the revision repeat the run", layout.settings_file("**/*")),
        line("the command of each training is recorded next to its weights", OF_MODELS),
        line(
            "tables can be made again without a model (`minillm archive`, `minillm rebuild`); whether code "
            "and archive are public, a run does not know"
        ),
        line("instructions: README.md and docs/running.md of that revision; they are not in the run"),
    ]
    return lines


def compute(facts: Facts) -> list[str]:
    """Hours by stage, kinds of processors, memory, energy."""
    lines = [
        _common(facts, "processor", "processor"),
        _common(facts, "processes of a training", "world_size"),
        line(f"peak memory of a training on its GPU: {_gpu_memory(facts)}", OF_MODELS),
        "",
        "| stage | jobs | wall hours | CPU hours | peak memory, GB |",
        "|:--|--:|--:|--:|--:|",
    ]
    rows = facts.benchmarks()
    for stage, jobs in rows.items():
        lines.append(
            f"| {markdown(stage)} | {len(jobs)} | {_hours(jobs, 's')} | {_hours(jobs, 'cpu_time')} | "
        )
        lines[-1] += f"{_gigabytes(jobs)} |"
    every = [job for jobs in rows.values() for job in jobs]
    lines.append(
        f"| all | {len(every)} | {_hours(every, 's')} | {_hours(every, 'cpu_time')} | {_gigabytes(every)} |"
    )
    lines += [
        "",
        line(
            "the table counts the attempt of each job that succeeded, with trials of grids; what was tried "
            "in other runs, or stopped, is not in it",
            layout.benchmark("**/*"),
        ),
        line(f"GPU hours of trainings (wall hours x processes): {_gpu_hours(facts)}", OF_MODELS),
        line("GPU hours of sampling and measuring: not recorded, only their wall hours above"),
        line("energy: not recorded"),
    ]
    return lines


def data(facts: Facts) -> list[str]:
    """Where rows came from, their hashes, and which were left out."""
    lines = []
    for path, card in facts.cards().items():
        with damage(facts.folder / path):
            parts = [(name, card[name]) for name in ("train", "dev", "corpus") if card.get(name)]
            for name, part in parts:
                digest = part.get("rows_sha256") or part.get("text_sha256") or NOT_RECORDED
                lines.append(line(f"{name}: {_source(part)}; {_rows(part)}; SHA-256 {digest}", path))
            lines.append(line(_limits(card), path))
    for path, card in facts.test_cards().items():
        with damage(facts.folder / path):
            name = path.rsplit("/", 1)[1].removesuffix(".card.json")
            text = f"test set {markdown(name)}: {_source(card)}; {_rows(card)}; SHA-256 {card.get('content')}"
            lines.append(line(text, path))
    for path, record in facts.all_json(layout.fetched("**/*")).items():
        what = f"{record.get('kind')} {markdown(str(record.get('path')))} of the hub"
        lines.append(line(f"{what}: commit {record.get('commit') or NOT_RECORDED}", path))
    for path, record in facts.all_json(layout.local("**/[!.]*")).items():
        text = (
            f"local files {short(str(record.get('path')))}: content {record.get('content') or NOT_RECORDED}"
        )
        lines.append(line(text, path))
    lines += [
        line("prompts, lengths and seeds by which rows were made into text and tokens", OF_DATA),
        line("when the data were collected, and by whom answers were written: not recorded"),
        line("licences of the data: not recorded"),
    ]
    return lines


def sizes(facts: Facts) -> list[str]:
    """Rows in training and tests, prompts and responses measured."""
    lines = [
        line(f"{name}: {card[name].get('kept', NOT_RECORDED)} rows", path)
        for path, card in facts.cards().items()
        for name in ("train", "dev")
        if isinstance(card.get(name), dict)
    ]
    counts: dict[str, dict[tuple[int, int], list[str]]] = {}
    for weights in sorted({file.weights for file in facts.settings.files()}):
        for test in facts.settings.table.tests:
            path = layout.meta(layout.generations(weights, test))
            meta = facts.json(path)
            if meta is not None:
                with damage(facts.folder / path):
                    size = int(meta["rows"]), len(meta["seeds"])
                counts.setdefault(test, {}).setdefault(size, []).append(weights)
    for test, found in counts.items():
        for (rows, seeds), models in found.items():
            lines.append(
                line(
                    f"{markdown(test)}: {counted(rows, 'prompt')} x {counted(seeds, 'sampling seed')} = "
                    f"{rows * seeds} responses of each of {counted(len(models), 'model')}",
                    layout.meta(layout.generations("**", test)),
                )
            )
    missing = [test for test in facts.settings.table.tests if test not in counts]
    lines += [line(f"{markdown(test)}: number of prompts not recorded") for test in missing]
    return lines


def leakage(facts: Facts) -> list[str]:
    """What the data stages compared."""
    lines = []
    for path, card in facts.cards().items():
        for name in ("train", "dev"):
            part = card.get(name)
            if isinstance(part, dict):
                lines.append(
                    line(f"{name}: {_of_rows(part.get('duplicates'))} equal to an earlier row", path)
                )
        lines.append(
            line(
                f"dev rows that are training rows: {_of_rows(part_of(card, 'dev', 'overlap_with_train'))}",
                path,
            )
        )
    for path, card in facts.test_cards().items():
        name = markdown(path.rsplit("/", 1)[1].removesuffix(".card.json"))
        lines.append(
            line(
                f"{name}: {_of_rows(card.get('overlap_with_train'))} that are training rows, "
                f"{_of_rows(card.get('overlap_with_dev'))} that are dev rows, "
                f"{_of_rows(card.get('duplicates'))} equal to an earlier row",
                path,
            )
        )
    lines += [
        line(
            "rows are equal if instruction and input are; the stages stop at a test or dev row that is a "
            "training row",
            "minillm/data/prepare.py",
        ),
        line("rows that are alike but not equal: not measured"),
        line("whether a pretrained model has seen the test sets: the run cannot say"),
    ]
    return lines


def models(facts: Facts) -> list[str]:
    """Base models: where they come from, and under which licence."""
    lines = []
    for weights, record in facts.provenance.items():
        source = (record.get("settings") or {}).get("model")
        if isinstance(source, dict):
            label = facts.settings.models.get(weights.split("/")[0])
            size = f" ({markdown(f'{label.family} {label.size}')})" if label else ""
            path = f"{layout.model(weights)}/{PROVENANCE}"
            with damage(facts.folder / path):
                said = f"{described(source) or NOT_RECORDED}; licence: {licence_of(source)}"
            lines.append(line(f"`{weights}`{size}: {said}", path))
    made = sum(
        not isinstance((r.get("settings") or {}).get("model"), dict) for r in facts.provenance.values()
    )
    lines += [
        line("inputs and outputs: text, as tokens; shapes are in each model's config.json"),
        line(
            f"models trained here: {made}; a model card with origin and measurements lies next to each; "
            "their licence is their publisher's to say",
            f"{layout.model('**')}/README.md",
        ),
    ]
    return lines


def settings(facts: Facts) -> list[str]:
    """Seeds, learning rates, and where all settings are."""
    table = facts.settings.table
    seeds = {str(seed) for card in _settings_of(facts, "data") if (seed := card.get("seed")) is not None}
    lines = [
        line(f"training seeds: {', '.join(map(str, table.training_seeds))}; sweeps have the first", METRICS),
        line(f"sampling seeds: {', '.join(map(str, table.sampling_seeds))}", METRICS),
        line(f"seed of the data: {', '.join(sorted(seeds)) or NOT_RECORDED}", OF_DATA),
        line(f"sampling of responses: {sampling_text(table.sampling)}", METRICS),
        _common(facts, "precision", "settings", "precision"),
        line(f"learning rate: {', '.join(facts.values(_learning_rate)) or NOT_RECORDED}", OF_MODELS),
        line("all other settings of each training, and their hash", OF_MODELS),
    ]
    return lines


def selection(facts: Facts) -> list[str]:
    """Which rule chose checkpoints and settings, and from what."""
    rules: dict[str, list[int]] = {}
    for weights in facts.provenance:
        path = f"{layout.model(weights)}/selection.json"
        record = facts.json(path)
        if record is not None:
            with damage(facts.folder / path):
                rule, history = str(record.get("rule") or NOT_RECORDED), record.get("history") or ()
                rules.setdefault(rule, []).append(len(history))
    lines = [
        line(
            f"checkpoint by `{rule}`: {counted(len(counts), 'model')}, "
            f"from {_range(counts)} dev evaluations each",
            SELECTIONS,
        )
        for rule, counts in sorted(rules.items())
    ]
    without = sum(facts.json(f"{layout.model(w)}/selection.json") is None for w in facts.provenance)
    if without:
        lines.append(line(f"{counted(without, 'model')} without a choice among checkpoints", OF_MODELS))
    lines.append(
        line("rules look only at dev rows; test sets choose nothing", "minillm/training/selection.py")
    )
    grids = {path: g for path, g in facts.all_json(layout.grid_choice("**/*")).items() if "chosen" in g}
    for path, grid in grids.items():
        with damage(facts.folder / path):
            tried = grid["candidates"]
            lost = [row["candidate"] for row in tried if row["lost"]]
            text = (
                f"grid of {grid['method']}, {grid['student']}: {len(tried)} candidates "
                f"({', '.join(str(row['candidate']) for row in tried)}) by {grid['rule']}, on "
                f"{grid['share']:g} of the training each; chosen {grid['chosen']['candidate']}"
            )
            notes = [f"lost: {', '.join(map(str, lost))}"] if lost else []
            notes += [grid["edge"]] if grid.get("edge") else []
            lines.append(line(markdown("; ".join([text, *notes])), path))
    if not grids:
        lines.append(line("no grid in this run: how its settings were chosen is not recorded"))
    return lines


def methods(facts: Facts) -> list[str]:
    """What is compared, and with which baselines."""
    table = facts.settings.table
    lines = []
    for pair in (*table.pairs, *table.sweeps):
        names = ", ".join(pair.methods or table.methods)
        students = ", ".join(table.labels.get(student, student) for student in pair.students)
        text = f"teacher {table.labels.get(pair.teacher, pair.teacher)}, students {students}: {names}"
        lines.append(line(markdown(text), METRICS))
    lines.append(
        line(
            "published numbers stand next to measured ones where a model is the paper's",
            layout.table("fidelity", "md"),
        )
    )
    return lines


def statistics(facts: Facts) -> list[str]:
    """Metrics with the number of sets, and what the main table says of its errors and tests."""
    asked = {kind: sets for kind, sets in facts.settings.asked.items() if sets}
    lines = [line(markdown(f"{kind}: on {listed(sets, 6)}"), METRICS) for kind, sets in asked.items()]
    lines.append(
        line(
            "definitions: docs/evaluation.md of the revision above; every number with its error and n",
            layout.metrics_table(),
        )
    )
    path = layout.table("main", "md")
    text = facts.text(path)
    notes = [] if text is None else [note.rstrip() for note in text.split("\n\n")[-1].splitlines()]
    lines += [line(note.rstrip("."), path) for note in notes if note and not note.startswith(("|", "**"))]
    if not notes:
        lines.append(line("error bars and tests of the main table: not recorded"))
    elif not any("Holm" in note for note in notes):
        lines.append(line("no lead of the main table was tested: nothing in it is bold", path))
    return lines


def judges(facts: Facts) -> list[str]:
    """Who judged responses, apart from metrics."""
    kinds: dict[str, list[str]] = {}
    for file in facts.settings.files():
        if file.kind == "judge" and (metric := facts.json(file.path)):
            judge = metric.get("judge")
            name = (
                f"{judge.get('kind')} {judge.get('model') or ''}" if isinstance(judge, dict) else str(judge)
            )
            stand_in = " (a stand-in; no table shows its scores)" if metric.get("stand_in") else ""
            kinds.setdefault(f"{' '.join(name.split())}{stand_in}", []).append(file.path)
    lines = [
        line(
            markdown(f"judge {name}: {len(paths)} scores of a model on a test set"),
            layout.metric("judge", "**", "*"),
        )
        for name, paths in kinds.items()
    ]
    if not kinds:
        lines.append(line("no scores of a judge are in this run", METRICS))
    lines.append(line("whether language models were used in any other way, a run does not know"))
    people = [(f.path, m) for f in facts.settings.files() if f.kind == "human" and (m := facts.json(f.path))]
    for path, metric in people:
        with damage(facts.folder / path):
            names = {name for c in metric["comparisons"] for name in c["annotators"]}
            judged = sum(c["n"] for c in metric["comparisons"])
        lines.append(
            line(
                f"people: {counted(len(names), 'annotator')}, {counted(judged, 'judgement')}; "
                f"pay: {NOT_RECORDED}",
                path,
            )
        )
    if not people:
        lines.append(line("no annotator's answers are in this run", METRICS))
    return lines


# --- parts of answers
def _common(facts: Facts, what: str, *keys: str) -> str:
    """The values that provenance has at `keys`, with the number of models that have each."""
    values = facts.values(lambda record: part_of(record, *keys))
    return line(f"{what}: {', '.join(values) or NOT_RECORDED}", OF_MODELS)


def _learning_rate(record: Mapping[str, Any]) -> Any:
    """That of the training, or of a base model's pretraining."""
    own = part_of(record, "settings", "training", "lr")
    return own if own is not None else part_of(record, "settings", "model", "training", "lr")


def _hours(jobs: Iterable[Mapping[str, float | None]], key: str) -> str:
    values = [job[key] for job in jobs]
    known = [value for value in values if value is not None]
    if not known:
        return NOT_RECORDED
    note = f" (of {len(known)} jobs)" if len(known) < len(values) else ""
    return f"{sum(known) / 3600:.3f}{note}"


def _gigabytes(jobs: Iterable[Mapping[str, float | None]]) -> str:
    known = [job["max_rss"] for job in jobs if job["max_rss"] is not None]
    return f"{max(known) / 1024:.1f}" if known else NOT_RECORDED


def _gpu_hours(facts: Facts) -> str:
    hours: dict[str, float] = {}
    for record in facts.provenance.values():
        if part_of(record, "peak_memory_mb", "gpu") is not None:
            stage = str(part_of(record, "settings", "stage") or NOT_RECORDED)
            seconds = float(record.get("wall_seconds") or 0) * int(record.get("world_size") or 1)
            hours[stage] = hours.get(stage, 0.0) + seconds / 3600
    if not hours:
        return _no_gpu(facts)
    stages = ", ".join(f"{markdown(stage)} {value:.3f}" for stage, value in sorted(hours.items()))
    return f"{sum(hours.values()):.3f} ({stages})"


def _gpu_memory(facts: Facts) -> str:
    used = [part_of(record, "peak_memory_mb", "gpu") for record in facts.provenance.values()]
    known = [float(value) for value in used if value is not None]
    return f"at most {max(known) / 1024:.1f} GB" if known else _no_gpu(facts)


def _no_gpu(facts: Facts) -> str:
    measured = any(part_of(record, "peak_memory_mb") for record in facts.provenance.values())
    return "none of them used a GPU" if measured else NOT_RECORDED


def _source(part: Mapping[str, Any]) -> str:
    return markdown(short(str(part.get("source") or NOT_RECORDED)))


def _rows(part: Mapping[str, Any]) -> str:
    if "kept" not in part:
        return f"{part.get('documents', NOT_RECORDED)} documents, {part.get('tokens', NOT_RECORDED)} tokens"
    dropped = ", ".join(f"{count} {why}" for why, count in (part.get("dropped") or {}).items())
    return f"{part['kept']} rows of {part['read']} read, dropped: {markdown(dropped) or 'none'}"


def _limits(card: Mapping[str, Any]) -> str:
    cut = part_of(card, "train", "response_cut")
    return (
        f"prompts have at most {card.get('max_prompt', NOT_RECORDED)} tokens, responses "
        f"{card.get('max_response', NOT_RECORDED)}; training responses cut there: "
        f"{NOT_RECORDED if cut is None else cut}"
    )


def _of_rows(value: Any) -> str:
    """The count of a card, which may be with the first ids."""
    count = value.get("count") if isinstance(value, Mapping) else value
    return f"{NOT_RECORDED} rows" if count is None else counted(count, "row")


def _settings_of(facts: Facts, stage: str) -> list[dict[str, Any]]:
    return list(facts.all_json(layout.settings_file(f"{stage}/*")).values())


def _range(counts: list[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
