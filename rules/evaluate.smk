# One job answers a test set with all sampling seeds; scores are computed from the written answers alone.
rule generate:
    input:
        config="results/{run}/configs/generate.json",
        test=tests_of,
        model="results/{run}/models/{weights}",
        code=sources("minillm.sampling.generate"),
    output:
        answers="results/{run}/generations/{weights}/{test}.jsonl",
        meta="results/{run}/generations/{weights}/{test}.meta.json",
    log:
        "results/{run}/logs/generate/{weights}/{test}.log",
    benchmark:
        "results/{run}/benchmarks/generate/{weights}/{test}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("generate")
    resources:
        mem_mb=16000,
        runtime="4h",
    params:
        command=launch("generate"),
    shell:
        "{params.command} --config {input.config} --test {input.test} --model {input.model}"
        " --out {output.answers} > {log} 2>&1"


rule rouge:
    input:
        answers="results/{run}/generations/{weights}/{test}.jsonl",
        meta="results/{run}/generations/{weights}/{test}.meta.json",
        code=sources("minillm.evaluation.rouge"),
    output:
        "results/{run}/metrics/rouge/{weights}/{test}.json",
    log:
        "results/{run}/logs/rouge/{weights}/{test}.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm rouge --generations {input.answers} --out {output} > {log} 2>&1"
