# The study of gradient estimators (docs/estimators.md): no model, no data, seconds.
rule estimators:
    input:
        config="results/{run}/configs/estimators.json",
        code=sources("minillm.publish.estimators"),
    output:
        collect("results/{{run}}/tables/estimators.{kind}", kind=["csv", "md"]),
        collect("results/{{run}}/figures/estimators.{kind}", kind=["png", "pdf"]),
    log:
        "results/{run}/logs/estimators.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm estimators --config {input.config} --out results/{wildcards.run} > {log} 2>&1"
