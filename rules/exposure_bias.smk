# Excess accumulated error (docs/evaluation.md): a teacher's samples are drawn once, each of its students draws its own.
rule samples:
    input:
        config="results/{run}/configs/samples.json",
        test=teachers_tests_of,
        model="results/{run}/models/{teacher}/teacher",
        code=sources("minillm.evaluation.teacher_samples"),
    output:
        samples="results/{run}/samples/{teacher}/{test}.jsonl",
        meta="results/{run}/samples/{teacher}/{test}.meta.json",
    log:
        "results/{run}/logs/samples/{teacher}/{test}.log",
    benchmark:
        "results/{run}/benchmarks/samples/{teacher}/{test}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("samples")
    resources:
        mem_mb=16000,
        runtime="4h",
    params:
        command=launch("samples"),
    shell:
        "{params.command} --config {input.config} --test {input.test} --model {input.model}"
        " --out {output.samples} > {log} 2>&1"


rule exposure_bias:
    input:
        config="results/{run}/configs/exposure_bias.json",
        samples="results/{run}/samples/{teacher}/{test}.jsonl",
        meta="results/{run}/samples/{teacher}/{test}.meta.json",
        model="results/{run}/models/{weights}",
        teacher="results/{run}/models/{teacher}/teacher",
        code=sources("minillm.evaluation.exposure_bias"),
    output:
        "results/{run}/metrics/exposure_bias/{teacher}/{weights}/{test}.json",
    log:
        "results/{run}/logs/exposure_bias/{teacher}/{weights}/{test}.log",
    benchmark:
        "results/{run}/benchmarks/exposure_bias/{teacher}/{weights}/{test}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("exposure_bias")
    resources:
        mem_mb=32000,
        runtime="8h",
    params:
        command=launch("exposure_bias"),
    shell:
        "{params.command} --config {input.config} --samples {input.samples} --model {input.model}"
        " --teacher {input.teacher} --out {output} > {log} 2>&1"
