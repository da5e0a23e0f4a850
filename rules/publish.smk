# Tables and figures beside the main ones: registry.py says what each is made of, so that a metric file that is made again re-publishes
# exactly what reads it. One rule; a figure is the same job with other files.
rule publish_table:
    input:
        results_of_item,
        config="results/{run}/configs/publish/{name}.json",
        code=lambda wildcards: sources(
            f"minillm.publish.{ITEMS[wildcards.name].module}"
        )
        + sources("minillm.publish.run"),
    output:
        report(
            "results/{run}/tables/{name}.csv",
            caption="../workflow/report/item.rst",
            category="Tables",
            labels=lambda wildcards: {"table": ITEMS[wildcards.name].shows},
        ),
        collect("results/{{run}}/tables/{{name}}.{kind}", kind=["md", "tex", "json"]),
    log:
        "results/{run}/logs/publish/{name}.log",
    wildcard_constraints:
        name=one_of(name for name, item in ITEMS.items() if item.kind == "table"),
    localrule: True
    conda:
        "../environment.yml"
    params:
        folder="tables",
        shows=lambda wildcards: ITEMS[wildcards.name].shows,
        reading=lambda wildcards: READING[wildcards.name],
    shell:
        "python -m minillm publish --config {input.config} --run-folder results/{wildcards.run}"
        " --out results/{wildcards.run}/{params.folder} > {log} 2>&1"


localrules:
    publish_figure,  # a rule that uses another does not take its localrule over


use rule publish_table as publish_figure with:
    output:
        report(
            "results/{run}/figures/{name}.png",
            caption="../workflow/report/item.rst",
            category="Figures",
            labels=lambda wildcards: {"figure": ITEMS[wildcards.name].shows},
        ),
        collect("results/{{run}}/figures/{{name}}.{kind}", kind=["pdf", "json"]),
    wildcard_constraints:
        name=one_of(name for name, item in ITEMS.items() if item.kind == "figure"),
    params:
        folder="figures",
        shows=lambda wildcards: ITEMS[wildcards.name].shows,
        reading=lambda wildcards: READING[wildcards.name],


rule index:
    input:
        sidecars=[
            f"results/{{run}}/{item.kind}s/{name}.json" for name, item in ITEMS.items()
        ],
        main="results/{run}/tables/main.md",
        figure="results/{run}/figures/main.png",
        further=further_results(),
        code=sources("minillm.publish.index"),
    output:
        "results/{run}/index.md",
    log:
        "results/{run}/logs/index.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm index --run-folder results/{wildcards.run} --out {output} > {log} 2>&1"
