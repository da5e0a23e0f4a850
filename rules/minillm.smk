# The on-policy phase, from the SFT checkpoint of lowest dev loss: MiniLLM, and its variants under other settings.
rule minillm:
    input:
        config="results/{run}/configs/{method}/{student}/{teacher}/{seed}.json",
        data=data_of,
        init="results/{run}/models/{student}/init/seed{seed}",
        teacher="results/{run}/models/{teacher}/teacher",
        code=sources("minillm.training.onpolicy"),
    output:
        directory("results/{run}/models/{student}/{method}/{teacher}/seed{seed}"),
    log:
        "results/{run}/logs/{method}/{student}/{teacher}/seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/{method}/{student}/{teacher}/seed{seed}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("minillm")
    resources:
        mem_mb=16000,
        runtime="48h",
    params:
        command=launch("minillm"),
    shell:
        "{params.command} --config {input.config} --data {input.data} --init {input.init}"
        " --teacher {input.teacher} --out {output} --checkpoints results/{wildcards.run}/checkpoints > {log} 2>&1"
