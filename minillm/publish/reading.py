"""How each table and figure is read: the captions of the report."""

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
