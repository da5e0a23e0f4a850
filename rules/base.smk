rule base:
    input:
        config=at(layout.settings_file("base/{model}")),
        data=FLOW.data,
        parent=FLOW.parent,
        pseudo=FLOW.answers_for_healing,
        records=FLOW.records("models", "model"),
        code=FLOW.code("base"),
    output:
        directory(at(layout.model(layout.base_weights("{model}")))),
    log:
        at(layout.log("base/{model}")),
    benchmark:
        at(layout.benchmark("base/{model}"))
    conda:
        "../environment.yml"
    threads: threads_of("base")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.launch("base"),
        made_from=option("parent", "pseudo"),
    shell:
        "{params.command} --config {input.config:q} --data {input.data:q}{params.made_from}"
        " --out {output:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"


# A finished model from a folder or the hub, in place of one that would be trained.
rule checkpoint:
    input:
        config=at(layout.settings_file("checkpoint/{taken}")),
        data=FLOW.data,
        records=FLOW.records("checkpoints", "taken"),
        code=FLOW.code("base"),
    output:
        directory(at(layout.model("{taken}"))),
    log:
        at(layout.log("checkpoint/{taken}")),
    benchmark:
        at(layout.benchmark("checkpoint/{taken}"))
    conda:
        "../environment.yml"
    threads: threads_of("base")
    resources:
        mem_mb=16000,
        runtime="4h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.launch("base"),
    shell:
        "{params.command} --config {input.config:q} --data {input.data:q} --out {output:q}"
        " --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
