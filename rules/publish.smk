# What people read: the main table and figure; the others, whose inputs registry.py lists, so that a metric
# file made again remakes exactly the items that read it; the study of estimators; the index and the report.
rule table:
    input:
        config=at(layout.settings_file("table")),
        metrics=FLOW.table_results(),
        paper=FLOW.paper(),
        code=FLOW.code("table"),
    output:
        csv=report(
            at(layout.table("main", "csv")),
            caption="../workflow/report/main_table.rst",
            category="Tables",
            labels={"table": "ROUGE-L, method by test set"},
        ),
        md=at(layout.table("main", "md")),
        tex=at(layout.table("main", "tex")),
    log:
        at(layout.log("table")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        run=lambda wildcards: RUN,
        folder=lambda wildcards: TABLES,
    shell:
        "python -m minillm table --config {input.config:q} --run-folder {params.run:q}"
        " --out {params.folder:q} > {log:q} 2>&1"


# Every measured number, in one tidy table.
rule metrics:
    input:
        FLOW.every_metric(),
        FLOW.every_model(),
        config=at(layout.settings_file("metrics")),
        code=FLOW.code("metrics"),
    output:
        at(layout.metrics_table()),
    log:
        at(layout.log("metrics")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        run=lambda wildcards: RUN,
    shell:
        "python -m minillm metrics --config {input.config:q} --run-folder {params.run:q} --out {output:q} > {log:q} 2>&1"


rule figure:
    input:
        config=at(layout.settings_file("figure")),
        table=at(layout.table("main", "csv")),
        code=FLOW.code("figure"),
    output:
        png=report(
            at(layout.figure("main", "png")),
            caption="../workflow/report/main_figure.rst",
            category="Figures",
            labels={"figure": "ROUGE-L, method by test set"},
        ),
        pdf=at(layout.figure("main", "pdf")),
    log:
        at(layout.log("figure")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        folder=lambda wildcards: FIGURES,
    shell:
        "python -m minillm figure --config {input.config:q} --table {input.table:q}"
        " --out {params.folder:q} > {log:q} 2>&1"


# Figures are the same job with other files.
rule publish_table:
    input:
        FLOW.item_results,
        config=at(layout.settings_file("publish/{name}")),
        code=FLOW.item_code,
    output:
        report(
            at(layout.table("{name}", "csv")),
            caption="../workflow/report/item.rst",
            category="Tables",
            labels=lambda wildcards: {"table": ITEMS[wildcards.name].shows},
        ),
        [at(layout.table("{name}", kind)) for kind in ("md", "tex", "json")],
    log:
        at(layout.log("publish/{name}")),
    wildcard_constraints:
        name=one_of(name for name, item in ITEMS.items() if item.kind == "table"),
    localrule: True
    conda:
        "../environment.yml"
    params:
        run=lambda wildcards: RUN,
        folder=lambda wildcards: TABLES,
        shows=lambda wildcards: ITEMS[wildcards.name].shows,
        reading=lambda wildcards: READING[wildcards.name],
    shell:
        "python -m minillm publish --config {input.config:q} --run-folder {params.run:q}"
        " --out {params.folder:q} > {log:q} 2>&1"


# A rule that uses another does not inherit its localrule.
localrules:
    publish_figure,


use rule publish_table as publish_figure with:
    output:
        report(
            at(layout.figure("{name}", "png")),
            caption="../workflow/report/item.rst",
            category="Figures",
            labels=lambda wildcards: {"figure": ITEMS[wildcards.name].shows},
        ),
        [at(layout.figure("{name}", kind)) for kind in ("pdf", "json")],
    wildcard_constraints:
        name=one_of(name for name, item in ITEMS.items() if item.kind == "figure"),
    params:
        folder=lambda wildcards: FIGURES,
        shows=lambda wildcards: ITEMS[wildcards.name].shows,
        reading=lambda wildcards: READING[wildcards.name],


# The study of gradient estimators (docs/estimators.md): no model, no data, seconds.
rule estimators:
    input:
        config=at(layout.settings_file("estimators")),
        code=FLOW.code("estimators"),
    output:
        report(
            at(layout.table("estimators", "csv")),
            caption="../workflow/report/estimators.rst",
            category="Tables",
            labels={"table": "Bias and variance of gradient estimators"},
        ),
        report(
            at(layout.figure("estimators", "png")),
            caption="../workflow/report/estimators.rst",
            category="Figures",
            labels={"figure": "Bias and variance of gradient estimators"},
        ),
        at(layout.table("estimators", "md")),
        at(layout.figure("estimators", "pdf")),
    log:
        at(layout.log("estimators")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        run=lambda wildcards: RUN,
    shell:
        "python -m minillm estimators --config {input.config:q} --out {params.run:q} > {log:q} 2>&1"


rule index:
    input:
        sidecars=[
            at(
                layout.table(name, "json")
                if item.kind == "table"
                else layout.figure(name, "json")
            )
            for name, item in FLOW.items.items()
        ],
        main=at(layout.table("main", "md")),
        figure=at(layout.figure("main", "png")),
        further=FLOW.further_results("estimators" in config),
        checklist=at(layout.checklist()),
        code=FLOW.code("index"),
    output:
        at(layout.index()),
    log:
        at(layout.log("index")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        run=lambda wildcards: RUN,
    shell:
        "python -m minillm index --run-folder {params.run:q} --out {output:q} > {log:q} 2>&1"


# What the run says to the items of two checklists for papers, from all of its records.
rule checklist:
    input:
        FLOW.every_metric(),
        FLOW.every_model(),
        config=at(layout.settings_file("metrics")),
        table=at(layout.table("main", "md")),
        code=FLOW.code("checklist"),
    output:
        at(layout.checklist()),
    log:
        at(layout.log("checklist")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        run=lambda wildcards: RUN,
    shell:
        "python -m minillm checklist --run-folder {params.run:q} --out {output:q} > {log:q} 2>&1"


# What people open: one page without network.
rule page:
    input:
        index=at(layout.index()),
        tables=[
            at(layout.table(name, "md"))
            for name, item in FLOW.items.items()
            if item.kind == "table"
        ],
        figures=[
            at(layout.figure(name, "png"))
            for name, item in FLOW.items.items()
            if item.kind == "figure"
        ],
        code=FLOW.code("page"),
    output:
        at(layout.page()),
    log:
        at(layout.log("page")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        run=lambda wildcards: RUN,
    shell:
        "python -m minillm page --run-folder {params.run:q} --out {output:q} > {log:q} 2>&1"


# The curves of all trainings; `minillm curves` writes the same page while they run.
rule curves:
    input:
        models=FLOW.every_model(),
        code=FLOW.module_code("minillm.publish.curves_page"),
    output:
        at(layout.curves()),
    log:
        at(layout.log("curves")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        run=lambda wildcards: RUN,
    shell:
        "python -m minillm curves {params.run:q} --out {output:q} > {log:q} 2>&1"


# Snakemake's report of the finished run, by a second Snakemake that only reads: with --nolock, since this one
# holds the lock.
rule report:
    input:
        [at(layout.table("main", kind)) for kind in ("csv", "md", "tex")],
        [at(layout.figure("main", kind)) for kind in ("png", "pdf")],
        index=at(layout.index()),
        captions=collect(
            "{folder}/report/{name}.rst",
            folder=FOLDER,
            name=["workflow", "main_table", "main_figure", "item", "estimators"],
        ),
        docutils=f"{FOLDER}/report/docutils.conf",
    output:
        at(layout.report()),
    log:
        at(layout.log("report")),
    localrule: True
    conda:
        "../environment.yml"
    params:
        options=same_workflow,
    shell:
        "python -m snakemake {input.index:q} --report {output:q} --nolock --cores 1"
        " {params.options} > {log:q} 2>&1"
