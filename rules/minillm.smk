# On-policy training from the SFT checkpoint with the lowest dev loss: MiniLLM, and variants with other
# settings.
rule minillm:
    input:
        config=at(layout.settings_file("{method}/{student}/{teacher}/{seed}")),
        data=FLOW.data,
        teacher_data=FLOW.teacher_data,
        pseudo=FLOW.pseudo_of_method,
        init=at(layout.model(layout.init_weights("{student}", "{seed}"))),
        teacher=at(layout.model(layout.teacher_weights("{teacher}"))),
        base=FLOW.base_of_adapter,
        prompts=FLOW.prompts,
        panel=FLOW.panel,
        grid=FLOW.grid(),
        code=FLOW.code("minillm"),
    output:
        directory(
            at(
                layout.model(
                    layout.student_weights(
                        "{student}", "{method}", "{teacher}", "{seed}"
                    )
                )
            )
        ),
    log:
        at(layout.log("{method}/{student}/{teacher}/seed{seed}")),
    benchmark:
        at(layout.benchmark("{method}/{student}/{teacher}/seed{seed}"))
    priority: 1
    conda:
        "../environment.yml"
    threads: threads_of("minillm")
    resources:
        mem_mb=16000,
        runtime="48h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.launch("minillm"),
        base=option("base"),
        # In one, so that a rule with one more option has the parameters that results were made with.
        teacher_data=option("teacher_data", "pseudo", "prompts", "panel", "grid"),
    shell:
        "{params.command} --config {input.config:q} --data {input.data:q} --init {input.init:q}"
        " --teacher {input.teacher:q}{params.base}{params.teacher_data} --out {output:q}"
        " --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
