rule table:
    input:
        config="results/{run}/configs/table.json",
        metrics=in_run(main_table_files(EXPERIMENT)),
        paper=paper_numbers(),
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
        "python -m minillm table --config {input.config} --run-folder results/{wildcards.run}"
        " --out results/{wildcards.run}/tables > {log} 2>&1"
