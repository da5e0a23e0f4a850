# Distinct n-grams, from the responses alone; and each model's loss on the references.
rule diversity:
    input:
        config="results/{run}/configs/diversity.json",
        answers="results/{run}/generations/{weights}/{test}.jsonl",
        meta="results/{run}/generations/{weights}/{test}.meta.json",
        code=sources("minillm.evaluation.diversity"),
    output:
        "results/{run}/metrics/diversity/{weights}/{test}.json",
    log:
        "results/{run}/logs/diversity/{weights}/{test}.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm diversity --config {input.config} --generations {input.answers}"
        " --out {output} > {log} 2>&1"


rule reference_loss:
    input:
        config="results/{run}/configs/reference_loss.json",
        test=tests_of,
        model="results/{run}/models/{weights}",
        code=sources("minillm.evaluation.reference_loss"),
    output:
        "results/{run}/metrics/reference_loss/{weights}/{test}.json",
    log:
        "results/{run}/logs/reference_loss/{weights}/{test}.log",
    benchmark:
        "results/{run}/benchmarks/reference_loss/{weights}/{test}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("reference_loss")
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        command=launch("reference_loss"),
    shell:
        "{params.command} --config {input.config} --test {input.test} --model {input.model}"
        " --out {output} > {log} 2>&1"
