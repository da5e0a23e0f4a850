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


# What local files hold, so that an edit is noticed; minillm/data/local_files.py reads them once.
rule local:
    output:
        at(layout.local("{source}")),
    log:
        at(layout.log("local/{source}")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        content=FLOW.local_content,
    shell:
        "printf '%s\\n' {params.content:q} > {output:q} 2> {log:q}"
