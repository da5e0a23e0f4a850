rule table:
    input:
        config="results/{run}/configs/table.json",
        metrics=collect(
            "results/{{run}}/metrics/rouge/{weights}/{test}.json",
            weights=MAIN_WEIGHTS,
            test=TESTS,
        ),
        judged=metrics_of("judge") if EXPERIMENT.judge.kind in REAL_JUDGES else [],
        paper=results_of("paper", [], ""),
        code=sources("minillm.publish.tables.main"),
    output:
        csv=report(
            "results/{run}/tables/main.csv",
            caption="../workflow/report/main_table.rst",
            category="Tables",
            labels={"table": "ROUGE-L, method by test set"},
        ),
        md="results/{run}/tables/main.md",
        tex="results/{run}/tables/main.tex",
    log:
        "results/{run}/logs/table.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm table --config {input.config} --metrics results/{wildcards.run}/metrics"
        " --out results/{wildcards.run}/tables > {log} 2>&1"
