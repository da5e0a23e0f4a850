# Excess accumulated error (docs/evaluation.md): a teacher's samples are drawn once for all of its students;
# each student draws its own.
rule samples:
    input:
        config=at(layout.settings_file("samples")),
        test=FLOW.test,
        model=at(layout.model(layout.teacher_weights("{teacher}"))),
        code=FLOW.code("samples"),
    output:
        samples=at(layout.samples("{teacher}", "{test}")),
        meta=at(layout.meta(layout.samples("{teacher}", "{test}"))),
    log:
        at(layout.log("samples/{teacher}/{test}")),
    benchmark:
        at(layout.benchmark("samples/{teacher}/{test}"))
    conda:
        "../environment.yml"
    threads: threads_of("samples")
    resources:
        mem_mb=16000,
        runtime="4h",
    params:
        command=FLOW.launch("samples"),
    shell:
        "{params.command} --config {input.config:q} --test {input.test:q} --model {input.model:q}"
        " --out {output.samples:q} > {log:q} 2>&1"


rule exposure_bias:
    input:
        config=at(layout.settings_file("exposure_bias")),
        samples=at(layout.samples("{teacher}", "{test}")),
        meta=at(layout.meta(layout.samples("{teacher}", "{test}"))),
        test=FLOW.own_test,
        model=at(layout.model("{weights}")),
        teacher=at(layout.model(layout.teacher_weights("{teacher}"))),
        code=FLOW.code("exposure_bias"),
    output:
        at(layout.metric("exposure_bias", "{weights}", "{test}", "{teacher}")),
    log:
        at(layout.log("exposure_bias/{teacher}/{weights}/{test}")),
    benchmark:
        at(layout.benchmark("exposure_bias/{teacher}/{weights}/{test}"))
    conda:
        "../environment.yml"
    threads: threads_of("exposure_bias")
    resources:
        mem_mb=32000,
        runtime="8h",
    params:
        command=FLOW.launch("exposure_bias"),
        test=option("test"),
    shell:
        "{params.command} --config {input.config:q} --samples {input.samples:q}{params.test}"
        " --model {input.model:q}"
        " --teacher {input.teacher:q} --out {output:q} > {log:q} 2>&1"


# ROUGE-L by the length of the first reference, from existing scores and responses.
rule lengths:
    input:
        config=at(layout.settings_file("lengths/{test}")),
        metric=at(layout.metric("rouge", "{weights}", "{test}")),
        answers=at(layout.generations("{weights}", "{test}")),
        meta=at(layout.meta(layout.generations("{weights}", "{test}"))),
        data=FLOW.data,
        code=FLOW.code("lengths"),
    output:
        at(layout.metric("lengths", "{weights}", "{test}")),
    log:
        at(layout.log("lengths/{weights}/{test}")),
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm lengths --config {input.config:q} --metric {input.metric:q}"
        " --generations {input.answers:q} --data {input.data:q} --out {output:q} > {log:q} 2>&1"


# Distinct n-grams, which need only the responses; and each model's loss on the references.
rule diversity:
    input:
        config=at(layout.settings_file("diversity")),
        answers=at(layout.generations("{weights}", "{test}")),
        meta=at(layout.meta(layout.generations("{weights}", "{test}"))),
        code=FLOW.code("diversity"),
    output:
        at(layout.metric("diversity", "{weights}", "{test}")),
    log:
        at(layout.log("diversity/{weights}/{test}")),
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm diversity --config {input.config:q} --generations {input.answers:q}"
        " --out {output:q} > {log:q} 2>&1"


rule reference_loss:
    input:
        config=at(layout.settings_file("reference_loss")),
        test=FLOW.test,
        model=at(layout.model("{weights}")),
        code=FLOW.code("reference_loss"),
    output:
        at(layout.metric("reference_loss", "{weights}", "{test}")),
    log:
        at(layout.log("reference_loss/{weights}/{test}")),
    benchmark:
        at(layout.benchmark("reference_loss/{weights}/{test}"))
    conda:
        "../environment.yml"
    threads: threads_of("reference_loss")
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        command=FLOW.launch("reference_loss"),
    shell:
        "{params.command} --config {input.config:q} --test {input.test:q} --model {input.model:q}"
        " --out {output:q} > {log:q} 2>&1"


# Right answers where all of them are known: of the responses, and by the model's own probabilities.
rule validity:
    input:
        answers=at(layout.generations("{weights}", "{test}")),
        meta=at(layout.meta(layout.generations("{weights}", "{test}"))),
        code=FLOW.code("validity"),
    output:
        at(layout.metric("validity", "{weights}", "{test}")),
    log:
        at(layout.log("validity/{weights}/{test}")),
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm validity --generations {input.answers:q} --out {output:q} > {log:q} 2>&1"


rule mode_mass:
    input:
        config=at(layout.settings_file("mode_mass")),
        test=FLOW.test,
        model=at(layout.model("{weights}")),
        code=FLOW.code("mode_mass"),
    output:
        at(layout.metric("mode_mass", "{weights}", "{test}")),
    log:
        at(layout.log("mode_mass/{weights}/{test}")),
    benchmark:
        at(layout.benchmark("mode_mass/{weights}/{test}"))
    conda:
        "../environment.yml"
    threads: threads_of("mode_mass")
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        command=FLOW.launch("mode_mass"),
    shell:
        "{params.command} --config {input.config:q} --test {input.test:q} --model {input.model:q}"
        " --out {output:q} > {log:q} 2>&1"


# More measurements: calibration, a judge's scores of the answers, comparisons by people.
rule calibration:
    input:
        config=at(layout.settings_file("calibration/{task}")),
        model=at(layout.model("{weights}")),
        records=FLOW.records_of_task,
        code=FLOW.code("calibration"),
    output:
        at(layout.metric("calibration", "{weights}", "{task}")),
    log:
        at(layout.log("calibration/{weights}/{task}")),
    benchmark:
        at(layout.benchmark("calibration/{weights}/{task}"))
    conda:
        "../environment.yml"
    threads: threads_of("calibration")
    resources:
        mem_mb=16000,
        runtime="2h",
    params:
        command=FLOW.launch("calibration"),
    shell:
        "{params.command} --config {input.config:q} --model {input.model:q} --out {output:q} > {log:q} 2>&1"


# Tasks of lm-eval, all of a model in one job.
rule harness:
    input:
        config=at(layout.settings_file("harness")),
        model=at(layout.model("{weights}")),
        records=FLOW.record_of_harness(),
        code=FLOW.code("harness"),
    output:
        at(layout.metric("harness", "{weights}", HARNESS_FILE)),
    log:
        at(layout.log("harness/{weights}")),
    benchmark:
        at(layout.benchmark(f"harness/{{weights}}/{HARNESS_FILE}"))
    conda:
        "../environment.yml"
    threads: threads_of("harness")
    resources:
        mem_mb=16000,
        runtime="8h",
    params:
        command=FLOW.launch("harness"),
    shell:
        "{params.command} --config {input.config:q} --model {input.model:q} --out {output:q} > {log:q} 2>&1"


# Verdicts are cached in a folder that is not an output: Snakemake removes outputs before it reruns a job. A
# judge behind an address is called from where Snakemake runs, since a cluster's nodes may have no network.
rule judge:
    input:
        config=at(layout.settings_file("judge")),
        answers=at(layout.generations("{weights}", "{judged}")),
        meta=at(layout.meta(layout.generations("{weights}", "{judged}"))),
        records=FLOW.record_of_judge(),
        code=FLOW.code("judge"),
    output:
        at(layout.metric("judge", "{weights}", "{judged}")),
    log:
        at(layout.log("judge/{weights}/{judged}")),
    benchmark:
        at(layout.benchmark("judge/{weights}/{judged}"))
    localrule: EXPERIMENT.judge.kind != "transformers"
    conda:
        "../environment.yml"
    threads: threads_of("judge") if EXPERIMENT.judge.kind == "transformers" else 1
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        cache=at(layout.judge_cache()),
    shell:
        "python -m minillm judge --config {input.config:q} --generations {input.answers:q}"
        " --cache {params.cache:q} --out {output:q} > {log:q} 2>&1"


rule human_page:
    input:
        config=at(layout.settings_file("human")),
        ours=at(layout.generations("{compared}", "{test}")),
        meta=at(layout.meta(layout.generations("{compared}", "{test}"))),
        others=FLOW.compared_with,
        metas=FLOW.metas_of_compared,
        code=FLOW.code("human-export"),
        page=os.path.relpath(f"{FOLDER}/../minillm/evaluation/human.html"),
    output:
        page=at(layout.human_page("{compared}", "{test}")),
        key=at(layout.key(layout.human_page("{compared}", "{test}"))),
    log:
        at(layout.log("human_page/{compared}/{test}")),
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm human-export --config {input.config:q} --generations {input.ours:q}"
        " --against {input.others:q} --out {output.page:q} > {log:q} 2>&1"


# The answer files that the configuration lists; each names the page it belongs to.
rule human_import:
    input:
        key=at(layout.key(layout.human_page("{compared}", "{test}"))),
        others=[
            at(layout.key(layout.human_page(weights, "{test}")))
            for weights in FLOW.compared
        ],
        answers=EXPERIMENT.human.answers,
        code=FLOW.code("human-import"),
    output:
        at(layout.metric("human", "{compared}", "{test}")),
    log:
        at(layout.log("human_import/{compared}/{test}")),
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm human-import --answers {input.answers:q} --key {input.key:q} --also {input.others:q}"
        " --out {output:q} > {log:q} 2>&1"
