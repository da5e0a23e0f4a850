# What comes from the hub, on the machine where Snakemake runs: the only jobs that need a network.
rule fetch:
    input:
        config="results/{run}/configs/fetch/{source}.json",
        code=sources("minillm.data.fetch"),
    output:
        "results/{run}/hub/{source}.json",
    log:
        "results/{run}/logs/fetch/{source}.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm fetch --config {input.config} --out {output} > {log} 2>&1"
