# Only Python (CI runs 3.11; the locks also hold for 3.12 and 3.13), git and make are needed. `make help` lists the targets.
ifeq ($(origin PYTHON), undefined)
# Looked up here, before .venv/bin is put first on the PATH.
PYTHON := $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3 || echo python3.11)
endif
PROFILE ?= emoji
GPU_PYTHON ?= python3
UV = 0.13.9

export EMU_ROOT ?= $(CURDIR)
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# No model hub is used, and no usage data is sent.
export HF_HUB_OFFLINE = 1
export TRANSFORMERS_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export DAGSTER_DISABLE_TELEMETRY = 1
export DVC_NO_ANALYTICS = 1
export GRADIO_ANALYTICS_ENABLED = False
export MLFLOW_DISABLE_TELEMETRY = true
export RAY_USAGE_STATS_ENABLED = 0
export MPLBACKEND = Agg

ENV = .venv/.complete .venv-dvc/.complete
MAKEFLAGS += --jobs=2 # the two environments, and the checks, run side by side

.PHONY: help env demo test check check-style check-types check-imports check-definitions check-graph up repro push lock bench gpu gpu-packages clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "  make %-13s%s\n", $$1, $$2 }'

env: $(ENV) ## create .venv and .venv-dvc from the lock files

.venv/.complete: requirements.lock pyproject.toml
	@$(PYTHON) scripts/create_env.py .venv requirements.lock --project

.venv-dvc/.complete: requirements-dvc.lock
	@$(PYTHON) scripts/create_env.py .venv-dvc requirements-dvc.lock

demo: $(ENV) ## the whole graph on PROFILE (default emoji), then a summary and data/reports/index.html
	@emu demo --profile $(PROFILE)

test: $(ENV) ## all tests, including the whole graph on the smoke profile
	@pytest --numprocesses logical --maxprocesses 4

check: check-definitions check-types check-style check-imports check-graph ## style, types, import rules, Dagster's definitions, dvc.yaml against the asset graph
check-types: $(ENV)
	pyrefly check --min-severity warn
check-style: $(ENV)
	ruff check .
	ruff format --check .
check-imports: $(ENV)
	lint-imports
check-definitions: $(ENV)
	dg check defs
check-graph: $(ENV)
	pytest -q tests/test_graph.py

up: $(ENV) ## Dagster's, MLflow's, the reports' and the studio's pages, until Ctrl-C
	@emu up

repro: $(ENV) ## make what is out of date with DVC
	@python -m emu_dagster.declarations.dvc_yaml && .venv-dvc/bin/dvc repro

push: $(ENV) ## upload data to the DVC remote (.dvc/config)
	@emu push

bench: $(ENV) ## run one file of benchmarks/: make bench NAME=…
	@test -f 'benchmarks/$(NAME).py' || { echo 'make bench NAME=…, one of:'; ls benchmarks; exit 1; }
	@python benchmarks/$(NAME).py

gpu: ## run what needs a GPU, without .venv, and write gpu.json; says so and ends well where there is none
	@$(GPU_PYTHON) scripts/gpu.py run

gpu-packages: ## put into .gpu-packages what a machine with a GPU, torch and no network lacks
	@$(GPU_PYTHON) scripts/gpu.py packages

lock: ## make both lock files again from pyproject.toml (versions and hashes, no addresses)
	@test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install -q uv==$(UV); }
	.venv-lock/bin/uv pip compile $(LOCK) --group dev --extra heic-jxl pyproject.toml -o requirements.lock
	.venv-lock/bin/uv pip compile $(LOCK) --group dvc -o requirements-dvc.lock
# Wheels only: the machine may have no compiler. With hydra-core 1.3, DVC would need antlr4 4.9, which has no wheel, so
# pre-releases are allowed if nothing else fits (hydra-core 1.4, omegaconf 2.4; DVC uses them for `dvc exp` only).
LOCK = --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --only-binary :all: \
       --custom-compile-command 'make lock' --quiet

clean: ## caches only; data/, mlflow/ and the environments stay
	@find . -path ./.venv -prune -o -path ./.venv-dvc -prune -o -path ./data -prune -o \
	  -type d \( -name __pycache__ -o -name '.*_cache' -o -name .hypothesis \) -print0 | xargs -0 rm -rf
