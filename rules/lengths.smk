# ROUGE-L by the length of the first reference, from scores and responses that are there already.
rule lengths:
    input:
        config="results/{run}/configs/lengths/{test}.json",
        metric="results/{run}/metrics/rouge/{weights}/{test}.json",
        answers="results/{run}/generations/{weights}/{test}.jsonl",
        meta="results/{run}/generations/{weights}/{test}.meta.json",
        data=data_of,
        code=sources("minillm.evaluation.lengths"),
    output:
        "results/{run}/metrics/lengths/{weights}/{test}.json",
    log:
        "results/{run}/logs/lengths/{weights}/{test}.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm lengths --config {input.config} --metric {input.metric} --generations {input.answers}"
        " --data {input.data} --out {output} > {log} 2>&1"
