"""Every table and figure beside the main ones: what makes it, which results it is made of, and what it shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One table (`Sheet`, publish/show.py) or figure (`Drawing`, publish/drawing.py).

    needs: kinds of results: of metrics/ by the folder's name, and "models", "generations", "paper" (config/paper).
    knob: which key of the on-policy settings it ranges over (settings.alike).
    sweeps: whether it is made of every model of the run, and not of the main table's alone.
    """

    kind: str  # "table" or "figure"
    module: str  # below minillm.publish
    function: str
    shows: str
    needs: tuple[str, ...] = ()
    knob: str = ""
    sweeps: bool = False


def _table(module: str, function: str, shows: str, *needs: str, knob: str = "", sweeps: bool = False) -> Item:
    return Item("table", module, function, shows, needs, knob, sweeps)


def _figure(module: str, function: str, shows: str, *needs: str, knob: str = "", sweeps: bool = False) -> Item:
    return Item("figure", module, function, shows, needs, knob, sweeps)


ITEMS = {
    "table2": _table("sheets", "calibration", "Table 2: calibration on zero-shot classification", "calibration", "paper"),
    "table3": _table("sheets", "diversity", "Table 3: diversity of the responses and loss of the references", "diversity", "reference_loss",
                     "paper"),
    "table4": _table("ablations", "strategies", "Table 4: MiniLLM without one of its strategies", "rouge", "models", "paper", sweeps=True),
    "table5": _table("sheets", "ngrams", "Table 5: total and distinct n-grams of each sampling seed", "diversity"),
    "table6": _table("other_families", "other_families", "Table 6: students of another family than the teacher's", "rouge", "judge",
                     "paper"),
    "table7": _table("ablations", "plain_text", "Table 7: MiniLLM without the pre-training loss", "rouge", "judge", "calibration",
                     "paper", knob="lm_coef", sweeps=True),
    "table8": _table("samples", "samples", "Table 8: answers of several models to the same prompts", "generations", sweeps=True),
    "cost": _table("costs", "costs", "What each method cost, beside its score", "rouge", "models", sweeps=True),
    "fidelity": _table("fidelity", "fidelity", "Measured beside published numbers", "rouge", "judge", "calibration", "diversity",
                       "reference_loss", "models", "paper", knob="lm_coef", sweeps=True),
    "figure1": _figure("scaling", "student_sizes", "Figure 1: average score against student size", "judge", "rouge"),
    "figure2": _figure("toy", "toy", "Figure 2: a Gaussian fitted to a mixture by forward and by reverse KL"),
    "figure3": _figure("schematic", "schematic", "Figure 3: SeqKD and MiniLLM, schematically"),
    "figure4": _figure("bars", "human", "Figure 4: human comparison of MiniLLM with the other methods", "human"),
    "figure5": _figure("scaling", "teacher_sizes", "Figure 5: one student under teachers of several sizes", "judge", "rouge", sweeps=True),
    "figure6": _figure("curves", "exposure_bias", "Figure 6: excess error by exposure bias", "exposure_bias"),
    "figure7": _figure("bars", "lengths", "Figure 7: ROUGE-L by the length of the reference", "lengths"),
    "figure8": _figure("curves", "reverse_kl", "Figure 8: reverse KL and length of the answers during training", "models", sweeps=True),
    "figure14": _figure("scaling", "teacher_sizes_opt", "Figure 14: like Figure 5, for OPT", "judge", "rouge", sweeps=True),
    "figure15": _figure("bars", "lengths", "Figure 15: like Figure 7, on further sets (in the paper UnNI)", "lengths"),
    "figure16": _figure("curves", "mixing", "Figure 16: dev ROUGE-L against the teacher's share in the sampling mixture", "models",
                       knob="alpha", sweeps=True),
    "reliability": _figure("curves", "reliability", "Reliability diagrams of Table 2", "calibration"),
    "size-gap": _figure("scaling", "size_gap", "Share of the teacher's score against how much larger the teacher is", "rouge", sweeps=True),
    "divergences": _figure("curves", "divergences", "Forward and reverse KL as objectives under one sampler", "models",
                           knob="objective", sweeps=True),
}  # fmt: skip
