# Snakemake's report of the finished run, by a second Snakemake that only reads: --nolock, because this one holds the lock.
rule report:
    input:
        collect("results/{{run}}/tables/main.{kind}", kind=["csv", "md", "tex"]),
        collect("results/{{run}}/figures/main.{kind}", kind=["png", "pdf"]),
        index="results/{run}/index.md",
        captions=collect(
            "{folder}/report/{name}.rst",
            folder=FOLDER,
            name=["workflow", "main_table", "main_figure", "item", "estimators"],
        ),
    output:
        "results/{run}/report.html",
    log:
        "results/{run}/logs/report.log",
    localrule: True
    conda:
        "../environment.yml"
    params:
        options=same_workflow,
    shell:
        "python -m snakemake {input.index} --report {output} --nolock --cores 1"
        " {params.options} > {log} 2>&1"
