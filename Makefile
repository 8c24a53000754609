# What can be done here, and how. `make help` lists it.
#
# Every target sets up what it needs: a virtual environment in .venv with the packages of its role. Where PyPI's torch is
# too large (on Linux it is the CUDA build), point pip at a CPU build with pip's own settings: see CONTRIBUTING.md.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORK := .work

export PYTHONUTF8 := 1

.PHONY: help
help:  ## list the targets
	@echo "Vani: speech recognition for Vietnamese and Indic languages on KServe"
	@echo
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environments -------------------------------------------------------------------------------

$(BIN)/python:
	@echo "creating $(VENV)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.serving: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the predictor's packages" >&2
	@$(INSTALL) --editable '.[predictor,demo]'
	@touch $@

$(VENV)/.developing: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the packages of development, torch among them" >&2
	@$(INSTALL) --editable '.[predictor,demo,pipelines,torch,openvino,tracking,dev]'
	@if command -v c++ >/dev/null && command -v cmake >/dev/null; then \
		echo "building KenLM" >&2; $(INSTALL) --editable '.[lm]'; \
	else echo "no C++ compiler or no cmake: tests of language models will be skipped" >&2; fi
	@touch $@ $(VENV)/.serving

# --- for users ----------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.serving  ## serve the embedded model, send it the test set, show what it understood
	@$(BIN)/python -m demo run

.PHONY: serve
serve: $(VENV)/.serving  ## serve the embedded model on port 8080 until Ctrl-C (settings: VANI_ASR_*)
	@$(BIN)/python -m predictor serve

.PHONY: wer
wer: $(VENV)/.serving  ## error rates of the embedded bundles on the test set
	@$(BIN)/python -m demo wer

# --- for developers -----------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.developing lint  ## check style, types and import contracts, then run every test
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: lint
lint: $(VENV)/.developing  ## style, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -3

.PHONY: format
format: $(VENV)/.developing  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

.PHONY: docs
docs: $(VENV)/.developing  ## run the commands that the documentation shows and write what they print
	@$(BIN)/python tests/support/documented.py

.PHONY: bench
bench: $(VENV)/.developing  ## what is fast: measured side by side on this machine
	@for script in engine path overhead throughput health seams hotwords load; do $(BIN)/python benchmarks/$$script.py; done

.PHONY: demo-model
demo-model: $(VENV)/.developing  ## make the embedded bundles and test set anew (needs espeak-ng; under two hours)
	@command -v espeak-ng >/dev/null || { echo "espeak-ng is needed: apt-get install espeak-ng" >&2; exit 2; }
	@$(BIN)/python -m demo --work $(WORK)/demo make

.PHONY: constraints
constraints: $(VENV)/.developing  ## compile constraints.txt from pyproject.toml
	@$(BIN)/python -m piptools compile --quiet --upgrade --all-extras --strip-extras --allow-unsafe --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-annotate --output-file $(WORK)/constraints.in pyproject.toml
	@sed -E 's/^(torch==[0-9.]+)\+cpu$$/\1/' $(WORK)/constraints.in > constraints.txt

.PHONY: clean
clean:  ## remove the environment and everything that was made in it
	@rm -rf $(VENV) $(WORK) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
