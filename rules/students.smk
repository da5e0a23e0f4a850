# Students that learn from fixed text: SFT (two selections from one run), KD, and SeqKD on the teacher's answers.
rule sft:
    input:
        config="results/{run}/configs/sft/{student}/{seed}.json",
        data=data_of,
        base="results/{run}/models/{student}/base",
        code=sources("minillm.training.supervised"),
    output:
        sft=directory("results/{run}/models/{student}/sft/seed{seed}"),
        init=directory("results/{run}/models/{student}/init/seed{seed}"),
    log:
        "results/{run}/logs/sft/{student}/seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/sft/{student}/seed{seed}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("sft")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        command=launch("sft"),
    shell:
        "{params.command} --config {input.config} --data {input.data} --base {input.base}"
        " --out {output.sft} --init {output.init} --checkpoints results/{wildcards.run}/checkpoints > {log} 2>&1"


rule kd:
    input:
        config="results/{run}/configs/kd/{student}/{teacher}/{seed}.json",
        data=data_of,
        base="results/{run}/models/{student}/base",
        teacher="results/{run}/models/{teacher}/teacher",
        code=sources("minillm.training.supervised"),
    output:
        directory("results/{run}/models/{student}/kd/{teacher}/seed{seed}"),
    log:
        "results/{run}/logs/kd/{student}/{teacher}/seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/kd/{student}/{teacher}/seed{seed}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("kd")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        command=launch("kd"),
    shell:
        "{params.command} --config {input.config} --data {input.data} --base {input.base}"
        " --teacher {input.teacher} --out {output} --checkpoints results/{wildcards.run}/checkpoints > {log} 2>&1"


rule pseudo:
    input:
        config="results/{run}/configs/pseudo/{teacher}.json",
        data=data_of,
        teacher="results/{run}/models/{teacher}/teacher",
        code=sources("minillm.sampling.generate"),
    output:
        "results/{run}/data/{tokenizer}/pseudo/{teacher}.jsonl",
    log:
        "results/{run}/logs/pseudo/{tokenizer}/{teacher}.log",
    benchmark:
        "results/{run}/benchmarks/pseudo/{tokenizer}/{teacher}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("pseudo")
    resources:
        mem_mb=16000,
        runtime="12h",
    params:
        command=launch("pseudo"),
    shell:
        "{params.command} --config {input.config} --data {input.data} --teacher {input.teacher}"
        " --out {output} --checkpoints results/{wildcards.run}/checkpoints > {log} 2>&1"


rule seqkd:
    input:
        config="results/{run}/configs/seqkd/{student}/{teacher}/{seed}.json",
        data=data_of,
        base="results/{run}/models/{student}/base",
        teacher="results/{run}/models/{teacher}/teacher",
        pseudo=pseudo_of,
        code=sources("minillm.training.supervised"),
    output:
        directory("results/{run}/models/{student}/seqkd/{teacher}/seed{seed}"),
    log:
        "results/{run}/logs/seqkd/{student}/{teacher}/seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/seqkd/{student}/{teacher}/seed{seed}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("seqkd")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        command=launch("seqkd"),
    shell:
        "{params.command} --config {input.config} --data {input.data} --base {input.base}"
        " --teacher {input.teacher} --pseudo {input.pseudo}"
        " --out {output} --checkpoints results/{wildcards.run}/checkpoints > {log} 2>&1"
