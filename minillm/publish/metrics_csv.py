"""Stage `metrics`: metrics.csv, the frame of all that the configuration asks to measure (docs/metrics.md)."""

from __future__ import annotations

from pathlib import Path

from minillm.files import whole_file
from minillm.publish.results import COLUMNS, read_frame
from minillm.publish.settings import MetricsSettings


def run_stage(settings: MetricsSettings, *, run_folder: Path, out: Path) -> None:
    """Write the metric files in `run_folder` (results/<run>) to `out`, at full precision, rows sorted.

    A missing metric file gives no row.  Raises UserError, one line, if one is damaged.
    """
    frame = read_frame(Path(run_folder), settings.files())
    with whole_file(out) as partial:
        frame.sort_values([*COLUMNS[:7], "source"], na_position="first").to_csv(partial, index=False)
