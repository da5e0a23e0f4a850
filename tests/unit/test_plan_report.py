"""What a run would still do, from the text of a dry run and earlier benchmark files."""

import pytest

from minillm.errors import UserError
from minillm.plan import critical_path, hours_of, jobs, plan, report

DRY = """Building DAG of jobs...

[Tue Nov 24 22:15:18 2026]
localrule settings:
    output: results/r/configs/teacher/big.json
    jobid: 3
    wildcards: run=r, key=teacher/big

[Tue Nov 24 22:15:18 2026]
rule teacher:
    input: results/r/configs/teacher/big.json, minillm/engine.py
    output: results/r/models/big/teacher
    log: results/r/logs/teacher/big.log
    jobid: 2
    benchmark: results/r/benchmarks/teacher/big.tsv
    wildcards: run=r, model=big

[Tue Nov 24 22:15:18 2026]
rule sft:
    input: minillm/engine.py
    output: results/r/models/small/sft/seed10, results/r/models/small/init/seed10
    benchmark: results/r/benchmarks/sft/small/seed10.tsv

[Tue Nov 24 22:15:18 2026]
rule minillm:
    input: results/r/models/small/init/seed10, results/r/models/big/teacher
    output: results/r/models/small/minillm/big/seed10
    benchmark: results/r/benchmarks/minillm/small/minillm/big/seed10.tsv

Job stats:
"""


def bench(root, path, seconds):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t-\n")


def test_jobs_of_a_dry_run():
    found = jobs(DRY)
    assert [job.rule for job in found] == ["settings", "teacher", "sft", "minillm"]
    assert found[2].outputs == ("results/r/models/small/sft/seed10", "results/r/models/small/init/seed10")
    assert found[0].benchmark == "" and found[1].benchmark == "results/r/benchmarks/teacher/big.tsv"


def test_hours_are_of_the_same_job_or_model_or_stage_and_never_guessed(tmp_path):
    planned = jobs(DRY)
    assert hours_of(planned, tmp_path) == {}
    bench(tmp_path, "results/r/benchmarks/teacher/big.tsv", 7200)
    bench(tmp_path, "results/r/benchmarks/sft/small/seed20.tsv", 3600)
    bench(tmp_path, "results/r/benchmarks/sft/large/seed10.tsv", 36000)
    assert hours_of(planned, tmp_path) == {1: 2.0, 2: 1.0}
    bench(tmp_path, "results/r/benchmarks/sft/small/seed10.tsv", 1800)
    bench(tmp_path, "results/r/benchmarks/minillm/other/minillm/big/seed10.tsv", 360)
    assert hours_of(planned, tmp_path) == {1: 2.0, 2: 0.5, 3: pytest.approx(0.1)}


def test_the_critical_path_goes_through_the_slowest_before(tmp_path):
    planned = jobs(DRY)
    assert critical_path(planned, {1: 2.0, 2: 1.0}) == [0, 1, 3]
    assert critical_path(planned, {1: 2.0, 2: 3.0, 3: 0.1}) == [2, 3]
    text = report(planned, {1: 2.0, 2: 1.0})
    assert (
        "| teacher | 1 | 2 | 2 |" in text
        and "| minillm | 1 | – | – |" in text
        and "| settings | 1 |  |  |" in text
    )
    assert (
        "Critical path: 2 h and 1 stages that never ran" in text
        and "  minillm small/minillm/big/seed10 (–)" in text
    )


def test_what_snakemake_cannot_plan_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^snakemake cannot plan this: No Snakefile found"):
        plan([])
