"""Every table and figure besides the main ones: what makes it, which results it is made of, what it shows, how to read it."""

from __future__ import annotations

from dataclasses import dataclass

# Results that are no metric, among what an item is made of.
RECORDS = ("models", "generations", "paper")


@dataclass(frozen=True)
class Item:
    """One table (`Sheet`, publish/sheet.py) or figure (`Drawing`, publish/drawing.py).

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


def _figure(
    module: str, function: str, shows: str, *needs: str, knob: str = "", sweeps: bool = False
) -> Item:
    return Item("figure", module, function, shows, needs, knob, sweeps)


ITEMS = {
    "table2": _table("tables.calibration_diversity", "calibration", "Table 2: calibration on zero-shot classification", "calibration", "paper"),
    "table3": _table("tables.calibration_diversity", "diversity", "Table 3: diversity of the responses and loss of the references",
                     "diversity", "reference_loss",
                     "paper"),
    "table4": _table("tables.ablations", "strategies", "Table 4: MiniLLM without one of its strategies",
                     "rouge", "models", "paper", sweeps=True),
    "table5": _table("tables.calibration_diversity", "ngrams", "Table 5: total and distinct n-grams of each sampling seed", "diversity"),
    "table6": _table("tables.other_families", "other_families", "Table 6: students of another family than the teacher's", "rouge", "judge",
                     "paper"),
    "table7": _table("tables.ablations", "plain_text", "Table 7: MiniLLM without the pre-training loss", "rouge", "judge", "calibration",
                     "paper", knob="lm_coef", sweeps=True),
    "table8": _table("tables.sample_answers", "samples", "Table 8: answers of several models to the same prompts", "generations", sweeps=True),
    "cost": _table("tables.costs", "costs", "What each method cost, beside its score", "rouge", "models", sweeps=True),
    "fidelity": _table("tables.fidelity", "fidelity", "Measured beside published numbers", "rouge", "judge", "calibration", "diversity",
                       "reference_loss", "models", "paper", knob="lm_coef", sweeps=True),
    "figure1": _figure("figures.scaling", "student_sizes", "Figure 1: average score against student size", "judge", "rouge"),
    "figure2": _figure("figures.figure2_toy", "toy", "Figure 2: a Gaussian fitted to a mixture by forward and by reverse KL"),
    "figure3": _figure("figures.figure3_schematic", "schematic", "Figure 3: SeqKD and MiniLLM, schematically"),
    "figure4": _figure("figures.bars", "human", "Figure 4: human comparison of MiniLLM with the other methods", "human"),
    "figure5": _figure("figures.scaling", "teacher_sizes", "Figure 5: one student under teachers of several sizes",
                       "judge", "rouge", sweeps=True),
    "figure6": _figure("figures.curves", "exposure_bias", "Figure 6: excess error by exposure bias", "exposure_bias"),
    "figure7": _figure("figures.bars", "lengths", "Figure 7: ROUGE-L by the length of the reference", "lengths"),
    "figure8": _figure("figures.curves", "reverse_kl", "Figure 8: reverse KL and length of the answers during training",
                       "models", sweeps=True),
    "figure14": _figure("figures.scaling", "teacher_sizes_opt", "Figure 14: like Figure 5, for OPT", "judge", "rouge", sweeps=True),
    "figure15": _figure("figures.bars", "lengths", "Figure 15: like Figure 7, on further sets (in the paper UnNI)", "lengths"),
    "figure16": _figure("figures.curves", "mixing", "Figure 16: dev ROUGE-L against the teacher's share in the sampling mixture", "models",
                       knob="alpha", sweeps=True),
    "reliability": _figure("figures.curves", "reliability", "Reliability diagrams of Table 2", "calibration"),
    "size-gap": _figure("figures.scaling", "size_gap", "Share of the teacher's score against how much larger the teacher is",
                        "rouge", sweeps=True),
    "divergences": _figure("figures.curves", "divergences", "Forward and reverse KL as objectives under one sampler", "models",
                           knob="objective", sweeps=True),
}  # fmt: skip

# How each is read: the captions of the report.
READING = {
    "table2": "ECE: mean distance between confidence and accuracy over bins, 0 is best; accuracy in percent. Compare the "
    "methods of one student: better calibrated is the one whose ECE is lower without a loss of accuracy. The "
    "teacher's row is the reference.",
    "table3": "Dist-4: share of distinct 4-grams among all of a model's responses, in percent; near the teacher's is good, far "
    "below means that the model repeats itself. Loss: nats a token on the references, which a model trained on its "
    "own samples need not keep low.",
    "table4": "One strategy left out a row. Read down: the drop from MiniLLM's row is what that strategy is worth. The two "
    "columns are sampled differently and not comparable with each other.",
    "table5": "Total / distinct n-grams of each sampling seed, from which Table 3's Dist-n comes; many more tokens lower the "
    "share by themselves.",
    "table6": "Read like the main table: here the students are of another family than their teacher, with whom they share the "
    "tokenizer.",
    "table7": "CLS is accuracy on classification, Inst the score on instructions. The paper's claim is that without the "
    "pre-training loss CLS falls and Inst does not.",
    "table8": "The prompts were drawn by the run's data seed, none picked by hand; read across the models at the same prompt.",
    "cost": "Hours and tokens of a method's own stage, beside its ROUGE-L. Wall hours compare only where the machines were "
    "alike.",
    "fidelity": "One line a published number. Read the difference together with the interval; a cell marked unverified was never "
    "compared with its source and measures no fidelity, a digitised one was read off a figure. A dash: not measured in this run.",
    "figure1": "Higher is better; the dashed line is the teacher. A method that distils well comes near that line with a small "
    "student.",
    "figure2": "One target with two modes. The forward fit covers both and the void between them, the reverse fit keeps to the "
    "larger one: why MiniLLM minimises the reverse KL.",
    "figure3": "A drawing without measurements: whose answers the student learns from, and by which divergence.",
    "figure4": "Shares in which people preferred MiniLLM's answer, saw a tie, or preferred the other's; whether wins and losses "
    "differ by more than chance is what the sign tests in the caption say.",
    "figure5": "One student; read along the axis: a method gains from a larger teacher where its line rises.",
    "figure6": "Excess error in percent that a student accumulates because it goes on from its own prefixes; flat and low is "
    "good, a rising line means that errors add up with the length.",
    "figure7": "ROUGE-L in buckets of the reference's length in tokens. Look at the longest bucket, where exposure bias would "
    "show.",
    "figure8": "Lower means nearer to the teacher on the student's own answers, which is what is minimised. A variant that falls "
    "and scores badly in Table 4 has found degenerate answers that the teacher rates highly; their length tells.",
    "figure14": "Like Figure 5, for students of OPT.",
    "figure15": "Like Figure 7, for another set.",
    "figure16": "0 samples from the student alone. Look for a broad maximum: there the exact share does not matter.",
    "reliability": "On the diagonal confidence equals accuracy; below it a model is overconfident. Bins with few examples scatter.",
    "size-gap": "100% is the teacher's score. Read along the axis: how much is lost as the teacher grows beyond the student.",
    "divergences": "The same training under two losses, each measured by both divergences: does each win on its own axis?",
}
