# BM-DETR: two commands set everything up on a machine with Python 3.11 and make: `make quickstart` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# Nothing here needs a network once installed; loopback servers in the tests are not affected.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

# Tests run in as many processes as there are processors; `make test PARALLEL=` runs them in one.
PARALLEL ?= --numprocesses logical --dist worksteal

.PHONY: help install quickstart card test test-slow bench check format docs clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: the quickstart installs less than the tests and the documentation need.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@

install: $(VENV)/.installed-dev  ## create the environment for development

quickstart: $(VENV)/.installed-quickstart  ## render videos, train, evaluate and answer questions, offline on a CPU
	@# Not as a file: processes that render and extract would each import all that it imports.
	@# Threads that wait sleep soon, and memory comes in large pages where the C library is glibc.
	GOMP_SPINCOUNT=20000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -c "from examples.quickstart import main; main()"

card: $(VENV)/.installed-quickstart  ## record the last quickstart and render model_card.md from the record
	$(BIN)/python examples/render_model_card.py outputs/quickstart/report.json --model outputs/quickstart/model \
		--dataset "Moving Shapes" --split test --license mit --language en --record examples/results/quickstart.json
	$(BIN)/python examples/render_model_card.py examples/results/quickstart.json --out model_card.md

test: $(VENV)/.installed-dev  ## the default test suite
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(VENV)/.installed-dev  ## the tests marked slow
	$(BIN)/python -m pytest $(PARALLEL) -m slow

bench: $(VENV)/.installed-dev  ## measure times and memory; BENCH="--only update" for a part of it
	$(BIN)/python examples/benchmarks/bench.py $(BENCH)

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## apply the format and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## build the documentation site in build/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## remove the environment and what the commands wrote
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
