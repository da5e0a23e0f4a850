# One job answers a test set with all sampling seeds; scores are computed only from the written answers.
rule generate:
    input:
        config=at(layout.settings_file("generate")),
        test=FLOW.test,
        model=at(layout.model("{weights}")),
        code=FLOW.code("generate"),
    output:
        answers=at(layout.generations("{weights}", "{test}")),
        meta=at(layout.meta(layout.generations("{weights}", "{test}"))),
    log:
        at(layout.log("generate/{weights}/{test}")),
    benchmark:
        at(layout.benchmark("generate/{weights}/{test}"))
    conda:
        "../environment.yml"
    threads: threads_of("generate")
    resources:
        mem_mb=16000,
        runtime="4h",
    params:
        command=FLOW.launch("generate"),
    shell:
        "{params.command} --config {input.config:q} --test {input.test:q} --model {input.model:q}"
        " --out {output.answers:q} > {log:q} 2>&1"


rule rouge:
    input:
        config=FLOW.rouge_settings,
        answers=at(layout.generations("{weights}", "{test}")),
        meta=at(layout.meta(layout.generations("{weights}", "{test}"))),
        code=FLOW.code("rouge"),
    output:
        at(layout.metric("rouge", "{weights}", "{test}")),
    log:
        at(layout.log("rouge/{weights}/{test}")),
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm rouge --config {input.config:q} --generations {input.answers:q}"
        " --out {output:q} > {log:q} 2>&1"


# The other metrics of responses: stages that are named like their files.
rule scored:
    input:
        config=FLOW.scored_settings,
        answers=at(layout.generations("{weights}", "{test}")),
        meta=at(layout.meta(layout.generations("{weights}", "{test}"))),
        code=lambda wildcards: FLOW.code(wildcards.scored),
    output:
        at(layout.metric("{scored}", "{weights}", "{test}")),
    log:
        at(layout.log("{scored}/{weights}/{test}")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        config=lambda wildcards, input: shlex.join(
            option for file in input.config for option in ("--config", file)
        ),
    shell:
        "python -m minillm {wildcards.scored:q} {params.config} --generations {input.answers:q}"
        " --out {output:q} > {log:q} 2>&1"
