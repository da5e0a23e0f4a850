# What the rules share: the checked configuration, through minillm/workflow/, and what only Snakemake knows.
import gc
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from minillm.config import layout
from minillm.config.experiment import experiment
from minillm.config.measurements.harness import FILE as HARNESS_FILE
from minillm.errors import UserError
from minillm.publish import report_texts
from minillm.publish.registry import ITEMS, READING
from minillm.readers import read_yaml
from minillm.workflow.rules import Workflow, one_of
from snakemake.common.configfile import load_configfile
from snakemake.utils import validate

# A plan is a million objects that live until it ends: collecting garbage among them takes an eighth of the
# time.
gc.set_threshold(100_000, 50, 50)

# Relative, like all paths here, so that moving the checkout reruns nothing.
FOLDER = os.path.relpath(workflow.basedir)


RUN_FILES = list(workflow.overwrite_configfiles) or ["config/config.yaml"]


def file_of(key):
    """The configuration file that has a key like models.small.path, to name it in a message."""
    first, *rest = key.split(".", 1)
    for path in RUN_FILES + list(workflow.configfiles):
        section = load_configfile(path).get(first)
        if section is not None and (
            not rest
            or not isinstance(section, dict)
            or any(f"{rest[0]}.".startswith(f"{name}.") for name in section)
        ):
            return os.path.relpath(path)
    return os.path.relpath(RUN_FILES[0])


# Snakemake takes the last of two equal keys, and does not name the key of a date.
try:
    for path in dict.fromkeys(RUN_FILES + list(workflow.configfiles)):
        read_yaml(os.path.relpath(path))
except UserError as error:
    sys.exit(f"Error: {error}")
# One line and no exception, around which Snakemake would print its own lines.
try:
    EXPERIMENT = experiment(config, "config")
except UserError as error:
    problem = str(error).removeprefix("config: ")
    sys.exit(f"Error: {file_of(problem.split(':')[0])}: {problem}")
validate(config, "../workflow/schemas/config.schema.yaml", set_default=False)

# Captions are rendered in this process, whoever asks for the report.
report_texts.restrict(f"{FOLDER}/report/docutils.conf")

FLOW = Workflow(EXPERIMENT, Path(os.path.relpath(Path(workflow.basedir).parent)))
# Folders that shell commands name.
RUN = layout.run_folder(EXPERIMENT.run)
# The run is not a wildcard: Snakemake finds a file's rule by its constant prefix, four times as fast.
at = FLOW.below
CHECKPOINTS, TABLES, FIGURES = (
    f"{RUN}/{path}"
    for path in (layout.checkpoints(), layout.tables(), layout.figures())
)


def threads_of(stage):
    return FLOW.threads(stage, workflow.resource_settings.cores)


# What the report's captions show of existing results; nothing else reads it.
config |= report_texts.captions(
    Path(RUN), {name: item.kind for name, item in ITEMS.items()}
)


wildcard_constraints:
    **FLOW.constraints(),


def option(*names):
    """Params function: " --NAME PATHS" for each of the inputs `names` of a rule that has a file."""

    def text(wildcards, input):
        written = []
        for name in names:
            files = [input[name]] if isinstance(input[name], str) else list(input[name])
            if files:
                paths = shlex.join(map(str, files))
                written.append(f" --{name.replace('_', '-')} {paths}")
        return "".join(written)

    return text


def same_workflow(wildcards, resources):
    """Params function: options that give a second Snakemake this workflow and configuration."""

    # A name that begins with a dash would be an option.
    def path(name):
        return os.path.join(".", os.path.relpath(name))

    options = ["--snakefile", path(workflow.main_snakefile)]
    if workflow.overwrite_configfiles:
        options += ["--configfile", *map(path, workflow.overwrite_configfiles)]
    values = workflow.config_settings.config
    if values:
        options += [
            "--config",
            *(f"{key}={json.dumps(value)}" for key, value in values.items()),
        ]
    return shlex.join(options)
