"""Where every file of a run is, below results/<run>/: one function for each kind of file.

A test (tests/unit/config/test_layout.py) checks that rules, package and results/README.md agree.  Arguments
are names, or the wildcards of a rule ("{weights}").  `weights` is the path of a model below models/, such as
gpt2/minillm/gpt2-xl/seed10.
"""

from __future__ import annotations

import re

# Parts of a set by the length of the reference, named like the published folders.
PARTS = ("0_5", "6_10", "11_")


def run_folder(run: str) -> str:
    """The folder of a run; every other path here is below it."""
    return f"results/{run}"


def settings_file(key: str) -> str:
    """The settings of one stage; `key` as in stages.names_of."""
    return f"configs/{key}.json"


# --- data
def fetched(source: str) -> str:
    """The record of a download from the hub.

    `source` is a section of the configuration and a name in it (models/gpt2).
    """
    return f"hub/{source}.json"


def local(source: str) -> str:
    """What the local files behind an entry of the configuration held; `source` as for `fetched`."""
    return f"local/{source}.json"


def known_content() -> str:
    """Hashes of local files by size and time of change, so that a plan need not read them all."""
    return "local/.known.json"


def training_data(tokenizer: str) -> str:
    """Folder: tokenizer, training rows, dev rows and corpus."""
    return f"data/{tokenizer}/training"


def teaching_data(tokenizer: str, prompt: str) -> str:
    """Folder: training rows and dev rows as who teaches is shown them."""
    return f"data/{tokenizer}/prompts/{prompt}"


def test_set(tokenizer: str, test: str) -> str:
    """One test set, in a tokenizer's tokens."""
    return f"data/{tokenizer}/tests/{test}.jsonl"


def subset_rows(subset: str, part: str = "") -> str:
    """Rows of S-NI or UnNI: all of them, or one of `PARTS`."""
    return f"data/subsets/{subset}{part and '.' + part}.jsonl"


def pseudo_answers(tokenizer: str, teacher: str) -> str:
    """The teacher's answers that SeqKD is trained on."""
    return f"data/{tokenizer}/pseudo/{teacher}.jsonl"


# --- models
def model(weights: str) -> str:
    """Folder of the model with these weights."""
    return f"models/{weights}"


def base_weights(name: str) -> str:
    """Weights of a base model."""
    return f"{name}/base"


def teacher_weights(name: str) -> str:
    """Weights of a fine-tuned teacher."""
    return f"{name}/teacher"


def init_weights(student: str, seed: int | str) -> str:
    """Weights that MiniLLM starts from."""
    return f"{student}/init/seed{seed}"


def student_weights(student: str, method: str, teacher: str, seed: int | str) -> str:
    """Weights of a student; SFT has no teacher."""
    if method == "sft":
        return f"{student}/sft/seed{seed}"
    return f"{student}/{method}/{teacher}/seed{seed}"


def grid_key(method: str, student: str, teacher: str) -> str:
    """Method, student and teacher as one path: the parts of the three files below; SFT has no teacher."""
    return "/".join((method, student) if method == "sft" else (method, student, teacher))


def trial(trained: str, candidate: str) -> str:
    """Dev evaluations of one candidate of a grid; `trained` as `grid_key` returns it."""
    return f"grid/{trained}/{candidate}.json"


def grid_choice(trained: str) -> str:
    """Which candidate was chosen, by which rule and from what."""
    return f"grid/{trained}.json"


def checkpoints() -> str:
    """Folder of the training states of stages that have not finished."""
    return "checkpoints"


def trackers() -> str:
    """Folder of what experiment trackers keep of the trainings, if the configuration asks for one."""
    return "trackers"


# --- generations and metrics
def generations(weights: str, test: str) -> str:
    """A model's responses to a test set."""
    return f"generations/{weights}/{test}.jsonl"


def samples(teacher: str, test: str) -> str:
    """A teacher's responses that exposure bias is measured on."""
    return f"samples/{teacher}/{test}.jsonl"


def metric(kind: str, weights: str, name: str, teacher: str = "") -> str:
    """What the measurement `kind` says of a model on a test set or task.

    Exposure bias is measured under a `teacher`.
    """
    return "/".join(filter(None, ("metrics", kind, teacher, weights, f"{name}.json")))


def metrics_table() -> str:
    """One tidy table of everything that was measured."""
    return "metrics.csv"


def judge_cache() -> str:
    """Folder of a judge's verdicts; no rule owns it, so that none of them is paid for twice."""
    return "judge-cache"


def human_page(weights: str, test: str) -> str:
    """A page of blind comparisons for annotators."""
    return f"human/{weights}/{test}.html"


# --- what people read
def tables() -> str:
    """Folder of the tables."""
    return "tables"


def table(name: str, kind: str) -> str:
    """A table; `kind` is csv, md, tex, or json for what it is made from."""
    return f"{tables()}/{name}.{kind}"


def figures() -> str:
    """Folder of the figures."""
    return "figures"


def figure(name: str, kind: str) -> str:
    """A figure; `kind` is png, pdf, or json for what it is made from."""
    return f"{figures()}/{name}.{kind}"


def curves() -> str:
    """The curves of every training, finished or running."""
    return "curves.html"


def index() -> str:
    """All tables and figures, one line each."""
    return "index.md"


def checklist() -> str:
    """What the run says to the items of two checklists for papers."""
    return "checklist.md"


def page() -> str:
    """What the run measured, on one page."""
    return "index.html"


def report() -> str:
    """Snakemake's report."""
    return "report.html"


# --- next to a file, and of a job
def meta(rows: str) -> str:
    """How generations or samples were drawn."""
    return rows.removesuffix(".jsonl") + ".meta.json"


def card(rows: str) -> str:
    """Which rows of a test set, or rows by length, were kept and dropped."""
    return rows.removesuffix(".jsonl") + ".card.json"


def key(page: str) -> str:
    """Which side is which on a page for annotators."""
    return page.removesuffix(".html") + ".key.json"


def log(job: str) -> str:
    """What a job printed."""
    return f"logs/{job}.log"


def benchmark(job: str) -> str:
    """A job's time and memory, as measured by Snakemake."""
    return f"benchmarks/{job}.tsv"


# A result -> the benchmark file of the job that made it, by the names that the rules give their jobs.
_BENCHMARKS = (
    (r"(benchmarks/.+\.tsv)", r"\1"),
    (r"generations/(.+)\.jsonl", r"benchmarks/generate/\1.tsv"),
    (r"metrics/(.+)\.json", r"benchmarks/\1.tsv"),
    (r"samples/(.+)\.jsonl", r"benchmarks/samples/\1.tsv"),
    (r"data/([^/]+)/prompts/([^/]+)(/.*)?", r"benchmarks/prompts/\1/\2.tsv"),
    (r"data/([^/]+)/tests/(.+)\.jsonl", r"benchmarks/testset/\1/\2.tsv"),
    (r"data/([^/]+)/pseudo/(.+)\.jsonl", r"benchmarks/pseudo/\1/\2.tsv"),
    (r"models/([^/]+)/(base|teacher)(/.*)?", r"benchmarks/\2/\1.tsv"),
    (r"models/([^/]+)/([^/]+)/((?:[^/]+/)?seed\d+)(/.*)?", r"benchmarks/\2/\1/\3.tsv"),
)


def benchmark_of(result: str) -> str:
    """The benchmark file of the job that made a result (or a file in one); empty if it has none."""
    matches = ((re.fullmatch(pattern, result), to) for pattern, to in _BENCHMARKS)
    return next((match.expand(to) for match, to in matches if match), "")


def place_of(generations: str) -> tuple[str, str, str] | None:
    """(run's folder, weights, test set) of a generations file that lies where `generations` says, or None."""
    match = re.fullmatch(r"(?:(.*)/)?generations/(.+)/([^/]+)\.jsonl", generations)
    return (match[1] or ".", match[2], match[3]) if match else None


def place_of_model(folder: str) -> tuple[str, str] | None:
    """(run's folder, weights) of a model's folder that lies where `model` says, or None."""
    match = re.fullmatch(r"(?:(.*)/)?models/(.+?)/?", folder)
    return (match[1] or ".", match[2]) if match else None


def is_metric(path: str) -> bool:
    """Whether a path is a metric file's."""
    return re.fullmatch(r"metrics/.+\.json", path) is not None


def is_generations(path: str) -> bool:
    """Whether a path is that of a model's responses."""
    return re.fullmatch(r"generations/.+\.jsonl", path) is not None
