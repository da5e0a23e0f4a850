rule teacher:
    input:
        config="results/{run}/configs/teacher/{model}.json",
        data=data_of,
        base="results/{run}/models/{model}/base",
        code=sources("minillm.training.supervised"),
    output:
        directory("results/{run}/models/{model}/teacher"),
    log:
        "results/{run}/logs/teacher/{model}.log",
    benchmark:
        "results/{run}/benchmarks/teacher/{model}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("teacher")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        command=launch("teacher"),
    shell:
        "{params.command} --config {input.config} --data {input.data} --base {input.base}"
        " --out {output} --checkpoints results/{wildcards.run}/checkpoints > {log} 2>&1"
