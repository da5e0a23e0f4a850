# One settings file a stage: a value edited while a job waits in a queue cannot slip into it.
rule settings:
    output:
        "results/{run}/configs/{key}.json",
    log:
        "results/{run}/logs/configs/{key}.log",
    localrule: True
    conda:
        "../environment.yml"
    params:
        settings=settings_of,
    shell:
        "printf '%s\\n' {params.settings:q} > {output} 2> {log}"


rule data:
    input:
        config="results/{run}/configs/data/{tokenizer}.json",
        hub=hub_of_data,
        code=sources("minillm.data.prepare"),
    output:
        directory("results/{run}/data/{tokenizer}/training"),
    log:
        "results/{run}/logs/data/{tokenizer}.log",
    benchmark:
        "results/{run}/benchmarks/data/{tokenizer}.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime="2h",
    shell:
        "python -m minillm data --config {input.config} --out {output} > {log} 2>&1"


# The rows of S-NI or UnNI, of all lengths and by length (docs/data.md); what task files hold is measured in the first teacher's tokens.
rule subsets:
    input:
        config="results/{run}/configs/subsets/{subset}.json",
        data=f"results/{{run}}/data/{tokenizer_of(TEACHERS[0])}/training",
        hub=lambda wildcards: fetched("subsets", wildcards.subset),
        code=sources("minillm.data.length_subsets"),
    output:
        rows="results/{run}/data/subsets/{subset}.jsonl",
        parts=collect(
            "results/{{run}}/data/subsets/{{subset}}.{part}",
            part=["0_5.jsonl", "6_10.jsonl", "11_.jsonl", "card.json"],
        ),
    log:
        "results/{run}/logs/subsets/{subset}.log",
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm subsets --config {input.config} --tokenizer {input.data}/tokenizer"
        " --out {output.rows} > {log} 2>&1"


rule testset:
    input:
        config="results/{run}/configs/testset/{test}.json",
        data="results/{run}/data/{tokenizer}/training",
        hub=hub_of_test,
        subset=subset_of_test,
        code=sources("minillm.data.prepare"),
    output:
        rows="results/{run}/data/{tokenizer}/tests/{test}.jsonl",
        card="results/{run}/data/{tokenizer}/tests/{test}.card.json",
    log:
        "results/{run}/logs/testset/{tokenizer}/{test}.log",
    benchmark:
        "results/{run}/benchmarks/testset/{tokenizer}/{test}.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime="1h",
    shell:
        "python -m minillm testset --config {input.config} --data {input.data} --out {output.rows} > {log} 2>&1"
