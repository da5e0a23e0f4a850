# Students trained on fixed text: SFT (two selections from one run), KD, and SeqKD on the teacher's answers.
rule sft:
    input:
        config=at(layout.settings_file("sft/{student}/{seed}")),
        data=FLOW.data,
        base=at(layout.model(layout.base_weights("{student}"))),
        grid=FLOW.grid("sft"),
        code=FLOW.code("sft"),
    output:
        sft=directory(
            at(layout.model(layout.student_weights("{student}", "sft", "", "{seed}")))
        ),
        init=directory(at(layout.model(layout.init_weights("{student}", "{seed}")))),
    log:
        at(layout.log("sft/{student}/seed{seed}")),
    benchmark:
        at(layout.benchmark("sft/{student}/seed{seed}"))
    conda:
        "../environment.yml"
    threads: threads_of("sft")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.launch("sft"),
        grid=option("grid"),
    shell:
        "{params.command} --config {input.config:q} --data {input.data:q} --base {input.base:q}{params.grid}"
        " --out {output.sft:q} --init {output.init:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"


rule kd:
    input:
        config=at(layout.settings_file("kd/{student}/{teacher}/{seed}")),
        data=FLOW.data,
        teacher_data=FLOW.teacher_data,
        base=at(layout.model(layout.base_weights("{student}"))),
        teacher=at(layout.model(layout.teacher_weights("{teacher}"))),
        grid=FLOW.grid("kd"),
        code=FLOW.code("kd"),
    output:
        directory(
            at(
                layout.model(
                    layout.student_weights("{student}", "kd", "{teacher}", "{seed}")
                )
            )
        ),
    log:
        at(layout.log("kd/{student}/{teacher}/seed{seed}")),
    benchmark:
        at(layout.benchmark("kd/{student}/{teacher}/seed{seed}"))
    priority: 1
    conda:
        "../environment.yml"
    threads: threads_of("kd")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.launch("kd"),
        teacher_data=option("teacher_data"),
        grid=option("grid"),
    shell:
        "{params.command} --config {input.config:q} --data {input.data:q} --base {input.base:q}"
        " --teacher {input.teacher:q}{params.teacher_data}{params.grid} --out {output:q}"
        " --checkpoints {params.checkpoints:q} > {log:q} 2>&1"


rule pseudo:
    input:
        config=at(layout.settings_file("pseudo/{teacher}")),
        data=FLOW.data,
        teacher=at(layout.model(layout.teacher_weights("{teacher}"))),
        code=FLOW.code("pseudo"),
    output:
        at(layout.pseudo_answers("{tokenizer}", "{teacher}")),
    log:
        at(layout.log("pseudo/{tokenizer}/{teacher}")),
    benchmark:
        at(layout.benchmark("pseudo/{tokenizer}/{teacher}"))
    # SeqKD, the longest chain of baselines, waits for it.
    priority: 2
    conda:
        "../environment.yml"
    threads: threads_of("pseudo")
    resources:
        mem_mb=16000,
        runtime="12h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.launch("pseudo"),
    shell:
        "{params.command} --config {input.config:q} --data {input.data:q} --teacher {input.teacher:q}"
        " --out {output:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"


rule seqkd:
    input:
        config=at(layout.settings_file("seqkd/{student}/{teacher}/{seed}")),
        data=FLOW.data,
        teacher_data=FLOW.teacher_data,
        base=at(layout.model(layout.base_weights("{student}"))),
        teacher=at(layout.model(layout.teacher_weights("{teacher}"))),
        pseudo=FLOW.pseudo,
        grid=FLOW.grid("seqkd"),
        code=FLOW.code("seqkd"),
    output:
        directory(
            at(
                layout.model(
                    layout.student_weights("{student}", "seqkd", "{teacher}", "{seed}")
                )
            )
        ),
    log:
        at(layout.log("seqkd/{student}/{teacher}/seed{seed}")),
    benchmark:
        at(layout.benchmark("seqkd/{student}/{teacher}/seed{seed}"))
    priority: 1
    conda:
        "../environment.yml"
    threads: threads_of("seqkd")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.launch("seqkd"),
        teacher_data=option("teacher_data"),
        grid=option("grid"),
    shell:
        "{params.command} --config {input.config:q} --data {input.data:q} --base {input.base:q}"
        " --teacher {input.teacher:q}{params.teacher_data}{params.grid} --pseudo {input.pseudo:q}"
        " --out {output:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"


# Methods of a configuration that are one of the two with other settings.
use rule kd as kd_variant with:
    input:
        config=at(layout.settings_file("{kd_variant}/{student}/{teacher}/{seed}")),
        data=FLOW.data,
        teacher_data=FLOW.teacher_data,
        base=at(layout.model(layout.base_weights("{student}"))),
        teacher=at(layout.model(layout.teacher_weights("{teacher}"))),
        grid=FLOW.grid(),
        code=FLOW.code("kd"),
    output:
        directory(
            at(
                layout.model(
                    layout.student_weights(
                        "{student}", "{kd_variant}", "{teacher}", "{seed}"
                    )
                )
            )
        ),
    log:
        at(layout.log("{kd_variant}/{student}/{teacher}/seed{seed}")),
    benchmark:
        at(layout.benchmark("{kd_variant}/{student}/{teacher}/seed{seed}"))


use rule seqkd as seqkd_variant with:
    input:
        config=at(layout.settings_file("{seqkd_variant}/{student}/{teacher}/{seed}")),
        data=FLOW.data,
        teacher_data=FLOW.teacher_data,
        base=at(layout.model(layout.base_weights("{student}"))),
        teacher=at(layout.model(layout.teacher_weights("{teacher}"))),
        pseudo=FLOW.pseudo,
        grid=FLOW.grid(),
        code=FLOW.code("seqkd"),
    output:
        directory(
            at(
                layout.model(
                    layout.student_weights(
                        "{student}", "{seqkd_variant}", "{teacher}", "{seed}"
                    )
                )
            )
        ),
    log:
        at(layout.log("{seqkd_variant}/{student}/{teacher}/seed{seed}")),
    benchmark:
        at(layout.benchmark("{seqkd_variant}/{student}/{teacher}/seed{seed}"))
