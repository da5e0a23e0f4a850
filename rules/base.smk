rule base:
    input:
        config="results/{run}/configs/base/{model}.json",
        data=data_of,
        parent=parent_of,
        code=sources("minillm.base"),
    output:
        directory("results/{run}/models/{model}/base"),
    log:
        "results/{run}/logs/base/{model}.log",
    benchmark:
        "results/{run}/benchmarks/base/{model}.tsv"
    conda:
        "../environment.yml"
    threads: THREADS
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
