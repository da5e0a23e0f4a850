"""Every table and figure but the main ones: what makes it and from what, what it shows, how to read it."""

from __future__ import annotations

from dataclasses import dataclass

# Results that an item can use and that are not metrics.
RECORDS = ("models", "generations", "paper")


@dataclass(frozen=True)
class Item:
    """One table (`Sheet`, tables/sheet.py) or figure (`Drawing`, figures/drawing.py).

    needs: the kinds of results that it uses: folders of metrics/, "models", "generations", "paper"
    (config/paper).
    knob: the key of the on-policy settings that it ranges over (settings.alike).
    sweeps: whether it uses every model of the run, not only the main table's.
    if_asked: whether it is only made if the configuration asks for one of its metrics.
    if_set: a key of the configuration without which it is not made.
    """

    kind: str  # "table" or "figure"
    module: str  # below minillm.publish
    function: str
    shows: str
    needs: tuple[str, ...] = ()
    knob: str = ""
    sweeps: bool = False
    if_asked: bool = False
    if_set: str = ""


def _table(module: str, function: str, shows: str, *needs: str, knob: str = "", sweeps: bool = False) -> Item:
    return Item("table", module, function, shows, needs, knob, sweeps)


def _figure(
    module: str, function: str, shows: str, *needs: str, knob: str = "", sweeps: bool = False
) -> Item:
    return Item("figure", module, function, shows, needs, knob, sweeps)


# Each entry: module and function; what it shows; the results that it uses.
ITEMS = {
    "table2": _table("tables.calibration_diversity", "calibration",
                     "Table 2: calibration on zero-shot classification",
                     "calibration", "paper"),
    "table3": _table("tables.calibration_diversity", "diversity",
                     "Table 3: diversity of the responses and loss on the references",
                     "diversity", "reference_loss", "paper"),
    "table4": _table("tables.ablations", "strategies",
                     "Table 4: MiniLLM without one of its strategies",
                     "rouge", "models", "paper", sweeps=True),
    "table5": _table("tables.calibration_diversity", "ngrams",
                     "Table 5: total and distinct n-grams of each sampling seed",
                     "diversity"),
    "table6": _table("tables.other_families", "other_families",
                     "Table 6: students of another family than the teacher's",
                     "rouge", "judge", "paper"),
    "table7": _table("tables.ablations", "plain_text",
                     "Table 7: MiniLLM without the pre-training loss",
                     "rouge", "judge", "calibration", "paper", knob="lm_coef", sweeps=True),
    "table8": _table("tables.sample_answers", "samples",
                     "Table 8: answers of several models to the same prompts",
                     "generations", sweeps=True),
    "modes": Item("table", "tables.modes", "modes",
                  "Precision, coverage and probability of the right answers, where all are known",
                  ("validity", "mode_mass"), if_asked=True),
    "harness": Item("table", "tables.harness", "harness",
                    "Tasks of lm-eval, model by model",
                    ("harness",), if_asked=True),
    "methods": Item("table", "tables.methods", "methods",
                    "All methods side by side, training by training",
                    ("rouge", "validity", "diversity", "models"), if_set="comparison.against"),
    "cost": _table("tables.costs", "costs",
                   "What each method cost, next to its score",
                   "rouge", "models", sweeps=True),
    "fidelity": _table("tables.fidelity", "fidelity",
                       "Measured numbers next to published ones",
                       "rouge", "judge", "calibration", "diversity", "reference_loss", "models", "paper",
                       knob="lm_coef", sweeps=True),
    "figure1": _figure("figures.scaling", "student_sizes",
                       "Figure 1: average score against student size",
                       "judge", "rouge"),
    "figure2": _figure("figures.figure2_toy", "toy",
                       "Figure 2: a Gaussian fitted to a mixture by forward and by reverse KL"),
    "figure3": _figure("figures.figure3_schematic", "schematic",
                       "Figure 3: SeqKD and MiniLLM, schematically"),
    "figure4": _figure("figures.bars", "human",
                       "Figure 4: human comparison of MiniLLM with the other methods",
                       "human"),
    "figure5": _figure("figures.scaling", "teacher_sizes",
                       "Figure 5: one student under teachers of several sizes",
                       "judge", "rouge", sweeps=True),
    "figure6": _figure("figures.curves", "exposure_bias",
                       "Figure 6: excess error by exposure bias",
                       "exposure_bias"),
    "figure7": _figure("figures.bars", "lengths",
                       "Figure 7: ROUGE-L by the length of the reference",
                       "lengths"),
    "figure8": _figure("figures.curves", "reverse_kl",
                       "Figure 8: reverse KL and length of the answers during training",
                       "models", sweeps=True),
    "figure14": _figure("figures.scaling", "teacher_sizes_opt",
                        "Figure 14: like Figure 5, for OPT",
                        "judge", "rouge", sweeps=True),
    "figure15": _figure("figures.bars", "lengths",
                        "Figure 15: like Figure 7, on further sets (in the paper UnNI)",
                        "lengths"),
    "figure16": _figure("figures.curves", "mixing",
                        "Figure 16: dev ROUGE-L against the teacher's share in the sampling mixture",
                        "models", knob="alpha", sweeps=True),
    "reliability": _figure("figures.curves", "reliability",
                           "Reliability diagrams of Table 2",
                           "calibration"),
    "size-gap": _figure("figures.scaling", "size_gap",
                        "Scores of students, and their share of the teacher's, against how much larger it is",
                        "rouge", sweeps=True),
    "modes-plot": Item("figure", "figures.modes", "modes",
                       "Precision of the responses against their coverage of the right answers",
                       ("validity",), if_asked=True),
    "divergences": _figure("figures.curves", "divergences",
                           "Forward and reverse KL as objectives under the same sampler",
                           "models", knob="objective", sweeps=True),
    "diagnosis": _figure("figures.diagnosis", "diagnosis",
                         "What on-policy training does to the answers, and to the signal on them",
                         "models"),
}  # fmt: skip

# How to read each of them: captions in the report.
READING = {
    "table2": (
        "ECE: mean distance between confidence and accuracy over the bins; 0 is best. Accuracy in "
        "percent. Compare the methods of one student: the better calibrated one has the lower ECE at no "
        "loss of accuracy. The teacher's row is the reference."
    ),
    "table3": (
        "Dist-4: share of distinct 4-grams among all responses of a model, in percent. Near the teacher's "
        "value is good; far below it, the model repeats itself. Loss: nats per token on the references; "
        "a model trained on its own samples need not keep it low."
    ),
    "table4": (
        "Each row leaves out one strategy: the drop from MiniLLM's row is what that strategy is worth. "
        "Dev and test are sampled differently and cannot be compared with each other."
    ),
    "table5": (
        "Total / distinct n-grams of each sampling seed, from which Table 3's Dist-n is computed. Many "
        "more tokens lower the share by themselves."
    ),
    "table6": (
        "Read like the main table. Here the students are of another family than their teacher, with whom "
        "they share the tokenizer."
    ),
    "table7": (
        "CLS is accuracy on classification, Inst the score on instructions. The paper claims that without "
        "the pre-training loss CLS falls and Inst does not."
    ),
    "table8": (
        "The prompts were drawn with the run's data seed, none was picked by hand. Compare the models' "
        "answers to the same prompt."
    ),
    "cost": (
        "Hours and tokens of a method's own stage, next to its ROUGE-L. Compare wall-clock hours only "
        "between runs on similar machines."
    ),
    "fidelity": (
        "One line per published number. Read the difference together with the interval. An unverified "
        "value was never compared with its source and measures no fidelity; a digitised one was read off "
        "a figure. A dash: not measured in this run."
    ),
    "modes": (
        "A method that keeps only what the teacher finds likely has a high precision and mass; one that "
        "keeps all of it has a high coverage and many forms. The columns to the right say what goes wrong."
    ),
    "modes-plot": (
        "Up: more responses are right. To the right: more of the right answers are reached. Above the dashed "
        "line a method gives up answers for precision."
    ),
    "methods": (
        "Methods start from the same students; lower KL is nearer to the teacher. A difference to a method "
        "counts where its p is below 0.05 after Holm's correction; with three seeds only large ones do."
    ),
    "harness": (
        "Each column is one number of one task, in lm-eval's own unit. A difference of less than two "
        "standard errors says little; with a limit on the questions the errors are large."
    ),
    "figure1": (
        "Higher is better; the dashed line is the teacher. A method that distils well comes near that "
        "line even with a small student."
    ),
    "figure2": (
        "One target with two modes. The forward fit covers both and the void between them; the reverse "
        "fit stays on the larger one. This is why MiniLLM minimises the reverse KL."
    ),
    "figure3": (
        "A diagram without measurements: whose answers the student learns from, and by which divergence."
    ),
    "figure4": (
        "Shares in which people preferred MiniLLM's answer, saw a tie, or preferred the other answer. The "
        "sign tests in the caption say whether wins and losses differ by more than chance."
    ),
    "figure5": (
        "One student per panel. Read along the axis: where its line rises, a method gains from a larger "
        "teacher."
    ),
    "figure6": (
        "Excess error, in percent, that a student accumulates by continuing its own prefixes. Flat and "
        "low is good; a rising line means that errors add up with the length."
    ),
    "figure7": (
        "ROUGE-L by length of the reference in tokens. Look at the longest bucket, where exposure bias "
        "would show."
    ),
    "figure8": (
        "Lower is nearer to the teacher on the student's own answers, the quantity that is minimised. A "
        "variant that falls here but scores badly in Table 4 has found degenerate answers that the "
        "teacher rates highly; their length shows it."
    ),
    "figure14": "Like Figure 5, for OPT students.",
    "figure15": "Like Figure 7, on another set.",
    "figure16": (
        "At 0 all samples come from the student. Look for a broad maximum: there the exact share does not "
        "matter."
    ),
    "reliability": (
        "On the diagonal, confidence equals accuracy; below it, a model is overconfident. Bins with few "
        "examples scatter."
    ),
    "size-gap": (
        "100% is the teacher's score. Read along the axis: how much is lost as the teacher grows beyond "
        "the student. In a student's own panel: does a method's score rise with the gap, stay or fall?"
    ),
    "divergences": (
        "The same training under two losses, each measured by both divergences: does each win on its own "
        "axis?"
    ),
    "diagnosis": (
        "Truncated answers and repetition that rise together, with a higher reward at repeated tokens, "
        "are how on-policy distillation collapses. A good run finds the teacher's likely tokens: the "
        "overlap rises, and the two entropies approach each other. A reward that falls along the answer "
        "says that errors add up; few effective samples and much noise, that a step knows little."
    ),
}
