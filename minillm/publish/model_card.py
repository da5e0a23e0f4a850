"""The whole card of a model: what its provenance says, and what its run measured and knows of its origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.config.measurements.metrics import STAGE_OF
from minillm.data.prompts import render
from minillm.data.sources import Row
from minillm.files import CARD, PROVENANCE, settings_hash
from minillm.publish.lineage import Ancestor, described, licence_of, lineage, read_provenance
from minillm.publish.origins import origins
from minillm.publish.results import frame_of, read_json
from minillm.publish.run_models import MetricFile
from minillm.publish.style import markdown, number
from minillm.runtime.card import model_card

# Those that `render` knows without a tokenizer.
TEMPLATES = ("alpaca", "plain")


def full_card(folder: Path, licence: str = "") -> str:
    """The card, in Markdown, of the model in `folder`; `licence`: the hub's name of its licence.

    Measurements, lineage and prompts come from the run whose folder it lies in (results/<run>/models/...),
    and only as far as their recorded hashes are those of this model.  Raises UserError, one line, if there
    is no model or a file of the run is damaged.
    """
    record = read_provenance(folder)
    place = layout.place_of_model(str(folder))
    header: dict[str, Any] = {"license": licence} if licence else {}
    if place is None:
        return model_card(record, header=header)
    run, weights = Path(place[0]), place[1]
    ancestors = lineage(run, record)
    bases = [a.source["path"] for a in ancestors if a.source.get("source") == "hub" and a.role != "teacher"]
    if bases:
        header["base_model"] = bases[0]
    sections = {
        "Measured": measured(run, weights, record),
        "Made from": _made_from(record, ancestors),
        "Data and prompts": _data(run, record),
    }
    sections = {title: text for title, text in sections.items() if text}
    return model_card(record, name=weights, header=header, sections=sections)


# --- measurements
def measured(run: Path, weights: str, record: Mapping[str, Any]) -> str:
    """A table of what the run's metric files say of these weights; "" if it measured nothing."""
    rows, others, sources = [], [], []
    for file in _metric_files(run, weights, record):
        content = read_json(run / file.path)
        if content is None:
            continue
        if not _of_model(run, weights, content, record["content"]):
            others.append(file.path)
            continue
        sources.append(file.path)
        frame = frame_of(run, [(file, content)])
        for line in frame[frame["sampling_seed"].isna()].to_dict("records"):
            error = None if line["error"] != line["error"] else line["error"]
            n = "" if line["n"] is None or line["n"] != line["n"] else str(line["n"])
            rows.append(f"| {markdown(line['test_set'])} | {line['metric']} | {_value(line, error)} | {n} |")
    notes = []
    if rows:
        texts = origins(run, sources)["sampling"]
        notes = ["Mean ± standard error over sampling seeds, of one training. n: rows."]
        notes += [f"Sampling: {text}." for text in texts]
    if others:
        notes.append(f"Left out, since measured on other weights: {', '.join(others)}.")
    head = ["| test set | metric | value | n |", "|:--|:--|--:|--:|"]
    # ROUGE-L's file has exact match too.
    table = "\n".join([*head, *dict.fromkeys(rows)]) if rows else ""
    return "\n\n".join(filter(None, [table, " ".join(notes)]))


def _metric_files(run: Path, weights: str, record: Mapping[str, Any]) -> list[MetricFile]:
    teacher = record["settings"].get("teacher", "")
    method = record["settings"].get("method") or record["settings"].get("stage", "")
    found = []
    # Exposure bias is measured under a teacher.
    for under in ("", teacher) if teacher else ("",):
        for path in sorted(run.glob(layout.metric("*", weights, "*", under))):
            kind = path.relative_to(run).parts[1]
            if (kind == "exposure_bias") == bool(under):
                seed = record["settings"].get("seed", 0)
                found.append(MetricFile(kind, under, weights, method, seed, path.stem, weights))
    return found


def _of_model(run: Path, weights: str, metric: Mapping[str, Any], content: str) -> bool:
    """Whether a metric file's sources are of the weights with this hash, as far as they say."""
    recorded = [
        value
        for path, value in (metric.get("sources_sha256") or {}).items()
        if layout.place_of_model(str(path)) and layout.place_of_model(str(path))[1] == weights  # type: ignore[index]
    ]
    for source in metric.get("sources") or ():
        place = layout.place_of(str(source))
        if place and place[1] == weights:
            meta = read_json(run / layout.meta(layout.generations(weights, place[2])))
            recorded += [meta["model"]] if meta and "model" in meta else []
    return all(value == content for value in recorded)


def _value(line: Mapping[str, Any], error: float | None) -> str:
    """As in the main table for scores of 0 to 100, else with four digits."""
    if line["metric"] in (*STAGE_OF.values(), "judge"):
        return number(line["value"], error)
    return f"{line['value']:.4g}" + ("" if error is None else f" ± {error:.2g}")


# --- origin
def _made_from(record: Mapping[str, Any], ancestors: list[Ancestor]) -> str:
    lines = []
    own = record["settings"].get("model")
    if isinstance(own, dict):
        lines.append(f"- this model: {described(own)}; licence: {licence_of(own)}")
    for ancestor in ancestors:
        what = [f"- {ancestor.role}: `{ancestor.weights}`"]
        if ancestor.source:
            what += [described(ancestor.source), f"licence: {licence_of(ancestor.source)}"]
        lines.append("; ".join(filter(None, what)))
    if not lines:
        return ""
    note = (
        "A licence is named as the configuration or the model card of that source names it. Those of all of "
        "them and of the data apply to this model; which licence it has itself is its publisher's to say."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _data(run: Path, record: Mapping[str, Any]) -> str:
    """Sources and counts of the training data, and the prompt that the model was trained on."""
    found = _training_data(run, record)
    if found is None:
        return ""
    card, template = found
    lines = [
        f"- {part}: {markdown(str(card[part]['source']))}"
        + (f", {card[part]['kept']} rows of {card[part]['read']}" if "kept" in card[part] else "")
        for part in ("train", "dev", "corpus")
        if isinstance(card.get(part), dict) and "source" in card[part]
    ]
    if template in TEMPLATES:
        example = render(Row(0, "INSTRUCTION", "INPUT", ("",)), template)
        lines.append(f"\nPrompt (template `{template}`; without an input its part is left out):\n")
        lines.append(f"```\n{example}```")
    elif template == "chat":
        lines.append(
            "\nPrompt: by the chat template of this folder's tokenizer (`apply_chat_template`), which has "
            "the run's system prompt and whether it thinks; an answer ends with the tokenizer's EOS."
        )
    return "\n".join(lines)


def trained_template(folder: Path) -> str:
    """The prompt template that a model of a run was trained on; "" for a base model, or if it is not known.

    Raises UserError, one line, if a record of the run is damaged.
    """
    place = layout.place_of_model(str(folder))
    if place is None or not (folder / PROVENANCE).is_file():
        return ""
    record = read_provenance(folder)
    found = _training_data(Path(place[0]), record)
    return found[1] if found and record["settings"].get("stage") != "base" else ""


def _training_data(run: Path, record: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
    """(card, prompt template) of the data folder that a model was trained on, if it is still that one.

    The template is "" if the folder's settings are not here any more.
    """
    for path in sorted(run.glob(f"{layout.training_data('*')}/{CARD}")):
        card = read_json(path)
        if card is not None and card.get("content") == record["inputs"].get("data"):
            settings = read_json(run / layout.settings_file(f"data/{path.parent.parent.name}"))
            same = settings is not None and settings_hash(settings) == card.get("settings_sha256")
            return card, str(settings.get("template", "")) if settings and same else ""
    return None
