rule teacher:
    input:
        config=at(layout.settings_file("teacher/{model}")),
        data=FLOW.data,
        base=at(layout.model(layout.base_weights("{model}"))),
        code=FLOW.code("teacher"),
    output:
        directory(at(layout.model(layout.teacher_weights("{model}")))),
    log:
        at(layout.log("teacher/{model}")),
    benchmark:
        at(layout.benchmark("teacher/{model}"))
    # Everything below waits for it; evaluations fill the gaps.
    priority: 2
    conda:
        "../environment.yml"
    threads: threads_of("teacher")
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.launch("teacher"),
    shell:
        "{params.command} --config {input.config:q} --data {input.data:q} --base {input.base:q}"
        " --out {output:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
