# How the command of a stage starts on what its job got.
def models_of(wildcards):
    """Names of the models that a job works with, its teacher first."""
    keys = ("teacher", "model", "student", "weights", "taken")
    found = [wildcards.get(key) for key in keys]
    return [name.split("/")[0] for name in found if name]


def launch(stage):
    """Params function: how a stage is started on the resources that its job got.

    Functions of `resources` are not part of a job's recorded parameters, so launch values re-run nothing.
    """

    def command(wildcards, resources, threads):
        values = launch_values(EXPERIMENT, stage, models_of(wildcards))
        processes, nodes = values["processes"], resources.get("nodes", 1)
        gpus = re.search(r"gpu(?::[^:]+)?:(\d+)", str(resources.get("gres", "")))
        if gpus:
            processes = int(gpus[1])  # of each node
        # Snakemake gives MKL all threads of the job, which are those of all its processes together.
        share = max(1, threads // processes)
        prefix = f"OMP_NUM_THREADS={share} MKL_NUM_THREADS={share}"
        # After a SIGTERM torchrun gives the processes so many seconds to save, and not its 30.
        torchrun = f"torchrun --shutdown-timeout=110 --nproc-per-node={processes}"
        run = f"-m minillm {stage} --launch {shlex.quote(json.dumps(values))}"
        if nodes > 1:
            per_node = os.path.relpath(
                Path(workflow.basedir) / "scripts" / "per_node.sh"
            )
            return (
                f"{prefix} srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={threads}"  # not inherited
                f" --kill-on-bad-exit=1 {per_node} {torchrun} --nnodes={nodes} {run}"
            )
        return (
            f"{prefix} {torchrun} --standalone {run}"
            if processes > 1
            else f"{prefix} python {run}"
        )

    return command


def same_workflow(wildcards, resources):
    """Params function: options with which a second Snakemake sees this workflow and configuration."""
    options = ["--snakefile", os.path.relpath(workflow.main_snakefile)]
    if workflow.overwrite_configfiles:
        options += [
            "--configfile",
            *map(os.path.relpath, workflow.overwrite_configfiles),
        ]
    given = workflow.config_settings.config
    if given:
        options += [
            "--config",
            *(f"{key}={json.dumps(value)}" for key, value in given.items()),
        ]
    return shlex.join(options)
