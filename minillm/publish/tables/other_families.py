"""Table 6: the main table for students of another family than their teacher's (in the paper, GPT-J's)."""

from __future__ import annotations

import dataclasses

from minillm.config.sections import Pair
from minillm.publish.item_results import ItemResults
from minillm.publish.tables.main import footnotes, headings, texts
from minillm.publish.tables.main_cells import Cell, collect_cells
from minillm.publish.tables.sheet import Sheet, merged_labels

CAPTION = (
    "ROUGE-L of students of another family than their teacher's. The main table, with one block per teacher, "
    "also has them."
)


def other_families(results: ItemResults) -> Sheet:
    """The main table's cells of those students and of their teachers."""
    table, specs = results.settings.table, results.settings.models

    def others(pair: Pair) -> tuple[str, ...]:
        family = specs[pair.teacher].family
        return tuple(s for s in pair.students if specs[s].family and specs[s].family != family)

    pairs = tuple(dataclasses.replace(pair, students=others(pair)) for pair in table.pairs if others(pair))
    columns = ["Model", "Method", *headings(table)]
    if not pairs:
        missing = "not measured: in this configuration every student is of its teacher's family"
        return Sheet(CAPTION, columns, [], [], [], "", missing)
    settings = dataclasses.replace(table, pairs=pairs)
    cells = collect_cells(settings, results.folder, results.paper)
    results.sources += [source for cell in cells for source in cell.sources.split(";") if source]
    lines: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        lines.setdefault((cell.teacher, cell.student, cell.method), []).append(cell)
    rows = [
        [line[0].student_label or line[0].teacher_label, line[0].method_label]
        + [text + "*" * best for cell in line for text, best in texts(settings, cell)]
        for line in lines.values()
    ]
    sizes = [
        f"{results.label(test)}: n = {c.n}" for test in table.tests for c in cells if c.test == test and c.n
    ]
    n = "; ".join(dict.fromkeys(sizes))
    notes = [
        note.replace("Bold: ", "*: ").replace("No cell is bold.", "No cell is starred.")
        for note in footnotes(settings, cells)
    ]
    missing = "" if n else "not measured in this run"
    records = [dataclasses.asdict(cell) for cell in cells]
    if not settings.metrics:
        # All are ROUGE-L.
        records = [{key: value for key, value in record.items() if key != "metric"} for record in records]
    return Sheet(CAPTION, columns, merged_labels(rows), [*notes, n], records, n, missing)
