# What is measured besides ROUGE-L: calibration of the models, a judge's scores of their answers, comparisons by people.
rule calibration:
    input:
        config="results/{run}/configs/calibration/{task}.json",
        model="results/{run}/models/{weights}",
        hub=hub_of_task,
        code=sources("minillm.evaluation.calibration"),
    output:
        "results/{run}/metrics/calibration/{weights}/{task}.json",
    log:
        "results/{run}/logs/calibration/{weights}/{task}.log",
    benchmark:
        "results/{run}/benchmarks/calibration/{weights}/{task}.tsv"
    conda:
        "../environment.yml"
    threads: threads_of("calibration")
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        command=launch("calibration"),
    shell:
        "{params.command} --config {input.config} --model {input.model} --out {output} > {log} 2>&1"


# Verdicts lie in a folder that is no output: Snakemake removes outputs before it runs a job again. A judge behind an address is asked
# from where Snakemake runs, since a cluster's nodes may have no network.
rule judge:
    input:
        config="results/{run}/configs/judge.json",
        answers="results/{run}/generations/{weights}/{judged}.jsonl",
        meta="results/{run}/generations/{weights}/{judged}.meta.json",
        code=sources("minillm.evaluation.judge"),
    output:
        "results/{run}/metrics/judge/{weights}/{judged}.json",
    log:
        "results/{run}/logs/judge/{weights}/{judged}.log",
    benchmark:
        "results/{run}/benchmarks/judge/{weights}/{judged}.tsv"
    localrule: EXPERIMENT.judge.kind != "transformers"
    conda:
        "../environment.yml"
    threads: threads_of("judge") if EXPERIMENT.judge.kind == "transformers" else 1
    resources:
        mem_mb=16000,
        runtime="24h",
    shell:
        "python -m minillm judge --config {input.config} --generations {input.answers}"
        " --cache results/{wildcards.run}/judge-cache --out {output} > {log} 2>&1"


rule human_page:
    input:
        config="results/{run}/configs/human.json",
        ours=lambda wildcards: f"{answers_of(wildcards.minillm)}.jsonl",
        meta=lambda wildcards: f"{answers_of(wildcards.minillm)}.meta.json",
        others=lambda wildcards: [f"{path}.jsonl" for path in compared_with(wildcards)],
        metas=lambda wildcards: [
            f"{path}.meta.json" for path in compared_with(wildcards)
        ],
        code=sources("minillm.evaluation.human"),
        page=os.path.relpath(f"{FOLDER}/../minillm/evaluation/human.html"),
    output:
        page="results/{run}/human/{minillm}/{test}.html",
        key="results/{run}/human/{minillm}/{test}.key.json",
    log:
        "results/{run}/logs/human_page/{minillm}/{test}.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm human-export --config {input.config} --generations {input.ours} --against {input.others}"
        " --out {output.page} > {log} 2>&1"


# The answer files that the configuration lists; each says to which page it belongs.
rule human_import:
    input:
        key="results/{run}/human/{minillm}/{test}.key.json",
        others=collect("results/{{run}}/human/{others}/{{test}}.key.json", others=HUMAN),
        answers=EXPERIMENT.human.answers,
        code=sources("minillm.evaluation.human"),
    output:
        "results/{run}/metrics/human/{minillm}/{test}.json",
    log:
        "results/{run}/logs/human_import/{minillm}/{test}.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm human-import --answers {input.answers} --key {input.key} --also {input.others}"
        " --out {output} > {log} 2>&1"
