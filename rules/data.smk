# One settings file per stage: a value edited while a job is queued cannot slip into it.
rule settings:
    output:
        at(layout.settings_file("{key}")),
    log:
        at(layout.log("configs/{key}")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        settings=FLOW.settings,
    shell:
        "printf '%s\\n' {params.settings:q} > {output:q} 2> {log:q}"


rule data:
    input:
        config=at(layout.settings_file("data/{tokenizer}")),
        records=FLOW.records_of_data,
        code=FLOW.code("data"),
    output:
        directory(at(layout.training_data("{tokenizer}"))),
    log:
        at(layout.log("data/{tokenizer}")),
    benchmark:
        at(layout.benchmark("data/{tokenizer}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime="2h",
    shell:
        "python -m minillm data --config {input.config:q} --out {output:q} > {log:q} 2>&1"


# The same rows by another text, for a teacher that is shown more than the student.
rule prompts:
    input:
        config=at(layout.settings_file("prompts/{prompt}")),
        data=at(layout.training_data("{tokenizer}")),
        records=FLOW.records_of_rows(),
        code=FLOW.code("prompts"),
    output:
        directory(at(layout.teaching_data("{tokenizer}", "{prompt}"))),
    log:
        at(layout.log("prompts/{tokenizer}/{prompt}")),
    benchmark:
        at(layout.benchmark("prompts/{tokenizer}/{prompt}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime="2h",
    shell:
        "python -m minillm prompts --config {input.config:q} --data {input.data:q} --out {output:q}"
        " > {log:q} 2>&1"


# The rows of S-NI or UnNI, of all lengths and by length (docs/data.md); lengths in task files are counted in
# the first teacher's tokens.
rule subsets:
    input:
        config=at(layout.settings_file("subsets/{subset}")),
        data=FLOW.first_data(),
        records=FLOW.records("subsets", "subset"),
        code=FLOW.code("subsets"),
    output:
        rows=at(layout.subset_rows("{subset}")),
        parts=[at(layout.subset_rows("{subset}", part)) for part in layout.PARTS],
        card=at(layout.card(layout.subset_rows("{subset}"))),
    log:
        at(layout.log("subsets/{subset}")),
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm subsets --config {input.config:q} --tokenizer {input.data:q}/tokenizer"
        " --out {output.rows:q} > {log:q} 2>&1"


rule testset:
    input:
        config=at(layout.settings_file("testset/{test}")),
        data=at(layout.training_data("{tokenizer}")),
        records=FLOW.records("datasets", "test"),
        subset=FLOW.subset_of_test,
        also=FLOW.linked_data,
        code=FLOW.code("testset"),
    output:
        rows=at(layout.test_set("{tokenizer}", "{test}")),
        card=at(layout.card(layout.test_set("{tokenizer}", "{test}"))),
    log:
        at(layout.log("testset/{tokenizer}/{test}")),
    benchmark:
        at(layout.benchmark("testset/{tokenizer}/{test}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        also=option("also"),
    shell:
        "python -m minillm testset --config {input.config:q} --data {input.data:q}{params.also}"
        " --out {output.rows:q} > {log:q} 2>&1"
