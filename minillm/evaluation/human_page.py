"""Stage `human-export`: a page of blind comparisons for annotators, one HTML file.

The page has only texts and opaque ids; a key file next to it says which side is which.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from minillm.config.measurements.human import HumanSettings
from minillm.errors import UserError
from minillm.evaluation.answers import Answers, question_of, read_answers
from minillm.files import whole_file, write_json

FORMAT = "minillm-human-1"
CHOICES = ("left", "tie", "right")
PAGE = files("minillm.evaluation") / "human.html"


def run_stage(
    settings: HumanSettings | None, *, generations: Path, against: Sequence[Path], out: Path
) -> None:
    """Write the page `out` and its key (.key.json): `settings.prompts` prompts for each of `against`.

    The first sampling seed of each file is shown.  Raises UserError if two files answer different prompts.
    """
    settings = settings or HumanSettings(stage="human")
    ours, rivals = read_answers(generations), [read_answers(path) for path in against]
    for rival in rivals:
        _check_same(ours, rival)
    chosen = random.Random(f"{settings.seed} prompts").sample(ours.ids, min(settings.prompts, len(ours.ids)))
    pairs = []
    for number, rival in enumerate(rivals):
        for id_ in sorted(chosen):
            row = ours.rows[ours.seeds[0]][id_]
            texts = [row["response"].strip(), rival.rows[rival.seeds[0]][id_]["response"].strip()]
            name = _hash(settings.seed, number, id_, row["prompt"], *sorted(texts))[:12]
            # 0: ours is on the left.
            side = random.Random(f"{settings.seed} {name}").randrange(2)
            shown = {
                "id": name,
                "question": question_of(row),
                "left": texts[side],
                "right": texts[1 - side],
            }
            key = {"ours": CHOICES[2 * side], "against": str(rival.path), "row": id_}
            pairs.append((shown, key))
    random.Random(f"{settings.seed} order").shuffle(pairs)
    study = _hash(*(json.dumps(shown) for shown, _ in pairs))[:16]
    page = {"format": FORMAT, "study": study, "pairs": [shown for shown, _ in pairs]}
    with whole_file(out) as partial:
        text = PAGE.read_text(encoding="utf-8").replace("{{DATA}}", embedded(page))
        partial.write_text(text, encoding="utf-8")
    key_values = {
        "format": FORMAT,
        "study": study,
        "dataset": ours.dataset,
        "ours": str(ours.path),
        "against": [str(rival.path) for rival in rivals],
        "prompts": len(chosen),
        "seed": settings.seed,
        "pairs": {shown["id"]: key for shown, key in pairs},
    }
    write_json(key_file(out), key_values)


def key_file(page: Path) -> Path:
    """The key file of a page."""
    return page.with_suffix(".key.json")


def embedded(value: object) -> str:
    """JSON for a script element: it has no "<" that could end the element or begin a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _shown(row: Mapping[str, Any]) -> Any:
    """What makes two rows the same question, whatever the models' chat templates."""
    return row.get("messages", row["prompt"])


def _check_same(ours: Answers, rival: Answers) -> None:
    a, b = ours.rows[ours.seeds[0]], rival.rows[rival.seeds[0]]
    differing = [id_ for id_ in ours.ids if id_ not in b or _shown(a[id_]) != _shown(b[id_])]
    if differing or len(ours.ids) != len(rival.ids):
        first = f", first id {differing[0]}" if differing else ""
        raise UserError(
            f"{rival.path}: its prompts are not those of {ours.path}{first}; compare answers to one test set"
        )
