rule base:
    input:
        config="results/{run}/configs/base/{model}.json",
        data=data_of,
        parent=parent_of,
        hub=hub_of_model,
        code=sources("minillm.training.base_model"),
    output:
        directory("results/{run}/models/{model}/base"),
    log:
        "results/{run}/logs/base/{model}.log",
    benchmark:
        "results/{run}/benchmarks/base/{model}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("base")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        command=launch("base"),
        parent=lambda wildcards, input: (
            f"--parent {input.parent}" if input.parent else ""
        ),
    shell:
        "{params.command} --config {input.config} --data {input.data} {params.parent}"
        " --out {output} --checkpoints results/{wildcards.run}/checkpoints > {log} 2>&1"


# A finished model from a folder or the hub, in the place of one that would be trained.
rule checkpoint:
    input:
        config="results/{run}/configs/checkpoint/{taken}.json",
        data=data_of,
        hub=hub_of_checkpoint,
        code=sources("minillm.training.base_model"),
    output:
        directory("results/{run}/models/{taken}"),
    log:
        "results/{run}/logs/checkpoint/{taken}.log",
    benchmark:
        "results/{run}/benchmarks/checkpoint/{taken}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("base")
    resources:
        mem_mb=16000,
        runtime="4h",
    params:
        command=launch("base"),
    shell:
        "{params.command} --config {input.config} --data {input.data} --out {output}"
        " --checkpoints results/{wildcards.run}/checkpoints > {log} 2>&1"
