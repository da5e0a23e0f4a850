# Downloads from the hub, on the machine where Snakemake runs: the only jobs that need a network.
rule fetch:
    input:
        config=at(layout.settings_file("fetch/{source}")),
        code=FLOW.code("fetch"),
    output:
        at(layout.fetched("{source}")),
    log:
        at(layout.log("fetch/{source}")),
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm fetch --config {input.config:q} --out {output:q} > {log:q} 2>&1"
