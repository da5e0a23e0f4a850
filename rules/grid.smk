# Which learning rate and length a method is trained with, if the configuration has a grid for it: short runs
# with the method's own stage, of which only dev evaluations are kept, and the choice.
rule trial:
    input:
        FLOW.trial_files,
        config=at(layout.settings_file("trial/{trained}/{candidate}")),
        code=FLOW.trial_code,
    output:
        at(layout.trial("{trained}", "{candidate}")),
    log:
        at(layout.log("trial/{trained}/{candidate}")),
    benchmark:
        at(layout.benchmark("trial/{trained}/{candidate}"))
    priority: 1
    conda:
        "../environment.yml"
    threads: lambda wildcards: threads_of(FLOW.stage_of_trial(wildcards))
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        checkpoints=lambda wildcards: CHECKPOINTS,
        command=FLOW.trial_launch,
        files=FLOW.trial_options,
    shell:
        "{params.command} --config {input.config:q} {params.files} --out {output:q}"
        " --checkpoints {params.checkpoints:q} > {log:q} 2>&1"


rule grid:
    input:
        config=at(layout.settings_file("grid/{trained}")),
        trials=FLOW.trials,
        code=FLOW.code("grid"),
    output:
        at(layout.grid_choice("{trained}")),
    log:
        at(layout.log("grid/{trained}")),
    priority: 1
    localrule: True
    conda:
        "../environment.yml"
    shell:
        "python -m minillm grid --config {input.config:q} --trials {input.trials:q} --out {output:q}"
        " > {log:q} 2>&1"
