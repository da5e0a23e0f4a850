# The study of gradient estimators (docs/estimators.md): no model, no data, seconds.
rule estimators:
    input:
        config="results/{run}/configs/estimators.json",
        code=sources("minillm.publish.estimators"),
    output:
        report(
            "results/{run}/tables/estimators.csv",
            caption="../workflow/report/estimators.rst",
            category="Tables",
            labels={"table": "Bias and variance of gradient estimators"},
        ),
        report(
            "results/{run}/figures/estimators.png",
            caption="../workflow/report/estimators.rst",
            category="Figures",
            labels={"figure": "Bias and variance of gradient estimators"},
        ),
        "results/{run}/tables/estimators.md",
        "results/{run}/figures/estimators.pdf",
    log:
        "results/{run}/logs/estimators.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm estimators --config {input.config} --out results/{wildcards.run} > {log} 2>&1"
