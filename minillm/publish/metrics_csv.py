"""Stage `metrics`: metrics.csv, the frame of everything that the configuration asks for (docs/metrics.md)."""

from __future__ import annotations

from pathlib import Path

from minillm.files import whole_file
from minillm.publish.results import COLUMNS, read_frame
from minillm.publish.settings import MetricsSettings


def run_stage(settings: MetricsSettings, *, run_folder: Path, out: Path) -> None:
    """The file `out` from the metric files in `run_folder` (results/<run>), numbers in full, rows sorted.

    A missing metric file gives no row.  Raises UserError, one line, if one is damaged.
    """
    frame = read_frame(Path(run_folder), settings.files())
    with whole_file(out) as partial:
        frame.sort_values([*COLUMNS[:7], "source"], na_position="first").to_csv(partial, index=False)
