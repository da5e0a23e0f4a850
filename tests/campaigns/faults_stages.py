"""The stages of tests/config/tiny.yaml: what each makes, and which files another stage reads."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.config import layout

STUDENT, TEACHER, TEST, SEED = "tiny-student", "tiny-teacher", "embedded-test", "10"
MINILLM = layout.student_weights(STUDENT, "minillm", TEACHER, SEED)
SFT = layout.student_weights(STUDENT, "sft", "", SEED)
DATA = layout.training_data("embedded")
ROWS = layout.test_set("embedded", TEST)
PSEUDO = layout.pseudo_answers("embedded", TEACHER)
ANSWERS = layout.generations(MINILLM, TEST)
SAMPLES = layout.samples(TEACHER, TEST)
PAGE = layout.human_page(MINILLM, TEST)


@dataclass(frozen=True)
class Stage:
    """A job: its outputs, for which Snakemake is asked, and the log that it begins with."""

    outputs: tuple[str, ...]
    log: str
    processes: int = 1


def _model(weights: str, log: str, *more: str, processes: int = 1) -> Stage:
    return Stage((layout.model(weights), *map(layout.model, more)), layout.log(log), processes)


def _metric(kind: str, name: str = TEST, teacher: str = "") -> Stage:
    log = "/".join(filter(None, (kind, teacher, MINILLM, name)))
    return Stage((layout.metric(kind, MINILLM, name, teacher),), layout.log(log))


def _student(method: str, processes: int = 1) -> Stage:
    weights = layout.student_weights(STUDENT, method, TEACHER, SEED)
    return _model(weights, f"{method}/{STUDENT}/{TEACHER}/seed{SEED}", processes=processes)


def _generate(processes: int = 1) -> Stage:
    return Stage((ANSWERS, layout.meta(ANSWERS)), layout.log(f"generate/{MINILLM}/{TEST}"), processes)


def _table(name: str) -> Stage:
    kinds = ("csv", "md", "tex") if name == "main" else ("csv", "md", "tex", "json")
    log = "table" if name == "main" else f"publish/{name}"
    return Stage(tuple(layout.table(name, kind) for kind in kinds), layout.log(log))


def _figure(name: str) -> Stage:
    kinds = ("png", "pdf") if name == "main" else ("png", "pdf", "json")
    log = "figure" if name == "main" else f"publish/{name}"
    return Stage(tuple(layout.figure(name, kind) for kind in kinds), layout.log(log))


STAGES = {
    "data": Stage((DATA,), layout.log("data/embedded")),
    "testset": Stage((ROWS, layout.card(ROWS)), layout.log(f"testset/embedded/{TEST}")),
    "base": _model(layout.base_weights(TEACHER), f"base/{TEACHER}"),
    "base, pruned": _model(layout.base_weights(STUDENT), f"base/{STUDENT}"),
    "teacher": _model(layout.teacher_weights(TEACHER), f"teacher/{TEACHER}"),
    "sft": _model(SFT, f"sft/{STUDENT}/seed{SEED}", layout.init_weights(STUDENT, SEED)),
    "kd": _student("kd"),
    "seqkd": _student("seqkd"),
    "pseudo": Stage((PSEUDO,), layout.log(f"pseudo/embedded/{TEACHER}")),
    "minillm": _student("minillm"),
    "minillm, two processes": _student("minillm", processes=2),
    "generate": _generate(),
    "generate, two processes": _generate(processes=2),
    "samples": Stage((SAMPLES, layout.meta(SAMPLES)), layout.log(f"samples/{TEACHER}/{TEST}")),
    "exposure_bias": _metric("exposure_bias", teacher=TEACHER),
    "calibration": _metric("calibration", "colour"),
    "diversity": _metric("diversity"),
    "lengths": _metric("lengths"),
    "reference_loss": _metric("reference_loss"),
    "rouge": _metric("rouge"),
    "judge": _metric("judge"),
    "human_page": Stage((PAGE, layout.key(PAGE)), layout.log(f"human_page/{MINILLM}/{TEST}")),
    "publish, table": _table("table2"),
    "publish, figure": _figure("figure6"),
    "table": _table("main"),
    "figure": _figure("main"),
    "metrics.csv": Stage((layout.metrics_table(),), layout.log("metrics")),
    "index": Stage((layout.index(),), layout.log("index")),
    "checklist": Stage((layout.checklist(),), layout.log("checklist")),
    "report": Stage((layout.report(),), layout.log("report")),
}

# Every job that reads verdicts, since an entry of the cache is of one model.
WEIGHTS = [
    layout.teacher_weights(TEACHER),
    SFT,
    *(layout.student_weights(STUDENT, method, TEACHER, SEED) for method in ("kd", "seqkd", "minillm")),
]
OTHERS = {
    "judge, all": Stage(
        tuple(layout.metric("judge", weights, TEST) for weights in WEIGHTS),
        layout.log(f"judge/{MINILLM}/{TEST}"),
    ),
    "publish, curves": _figure("figure8"),
}

# A file, or a pattern for files, below the run's folder -> a stage that reads it.  Together every kind of
# file that a run leaves, but for logs, benchmarks and what only people read.
READ_BY = {
    layout.settings_file("generate"): "generate",
    layout.settings_file(f"sft/{STUDENT}/{SEED}"): "sft",
    f"{DATA}/[td]*.npy": "teacher",
    f"{DATA}/corpus.*.npy": "minillm",
    f"{DATA}/card.json": "teacher",
    f"{DATA}/dev.jsonl": "sft",
    f"{DATA}/train.jsonl": "pseudo",
    f"{DATA}/tokenizer/*": "testset",
    ROWS: "generate",
    f"{layout.model(layout.base_weights(STUDENT))}/*.json": "sft",
    f"{layout.model(layout.teacher_weights(TEACHER))}/*.safetensors": "kd",
    f"{layout.model(layout.init_weights(STUDENT, SEED))}/*.json": "minillm",
    f"{layout.model(MINILLM)}/*.safetensors": "generate",
    f"{layout.model(MINILLM)}/metrics.jsonl": "publish, curves",
    PSEUDO: "seqkd",
    ANSWERS: "rouge",
    layout.meta(ANSWERS): "diversity",
    SAMPLES: "exposure_bias",
    layout.metric("rouge", MINILLM, TEST): "table",
    layout.metric("calibration", MINILLM, "colour"): "metrics.csv",
    layout.metric("calibration", MINILLM, "[c]olour"): "publish, table",
    f"{layout.judge_cache()}/*/*": "judge, all",
    layout.table("main", "csv"): "figure",
    layout.table("table2", "json"): "index",
    layout.index(): "report",
    layout.metrics_table(): "",
    layout.table("main", "md"): "",
}
