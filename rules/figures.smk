rule figure:
    input:
        config="results/{run}/configs/figure.json",
        table="results/{run}/tables/main.csv",
        code=sources("minillm.publish.figures.main"),
    output:
        png=report(
            "results/{run}/figures/main.png",
            caption="../workflow/report/main_figure.rst",
            category="Figures",
            labels={"figure": "ROUGE-L, method by test set"},
        ),
        pdf="results/{run}/figures/main.pdf",
    log:
        "results/{run}/logs/figure.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm figure --config {input.config} --table {input.table}"
        " --out results/{wildcards.run}/figures > {log} 2>&1"
