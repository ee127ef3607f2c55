# make            lists the targets
# make test PYTHON=python3.12
#                 chooses the Python that .venv is made with (3.11 or newer)
# make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                 takes PyTorch, and only PyTorch, from another package index. On Linux, PyPI's own PyTorch
#                 is a CUDA build of several GB; this index holds the small CPU build.

PYTHON      ?= python3
TORCH_INDEX ?=
WHEELS      ?= dist

VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-all lint format types check bench reference wheel dev clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## a first result in about a minute: out/demo/figure2.png
	$(BIN)/edgewise reproduce figure2 --scale demo --out out/demo --resume

# One thread: tests compare runs bit for bit, and two threads a step are slower on a busy machine. Processes of
# one thread are the parallelism that pays; more than four of them would rather be short of memory.
test: dev  ## the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist worksteal

test-slow: dev  ## the long tests only
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow || [ $$? -eq 5 ]  # 5: there are none

test-all: dev  ## all tests, the long ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

lint: dev  ## ruff: faults and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: dev  ## mypy, strict
	$(BIN)/python -m mypy

check: lint types  ## lint and types

bench: dev  ## every script in benchmarks/, one after the other
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

reference: dev  ## docs/api.md from the docstrings
	$(BIN)/python docs/generate_api.py

wheel: dev  ## the wheel, in dist/
	$(BIN)/python -m build --wheel --outdir "$(WHEELS)"

dev: $(VENV)/.dev  ## .venv with all that development needs

clean:  ## remove built files and caches; .venv and out/ stay
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find edgewise tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Stamps: what is installed is newer than what asked for it, so a second call has nothing to do.
# PyTorch comes first and pinned, so that nothing after it pulls another build.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "edgewise needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e . -c constraints.txt
	@touch $@

# All that the demo needs is in it too.
$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[dev]" -c constraints.txt
	@touch $@ $(VENV)/.demo
