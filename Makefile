# Needs python3.11 or later and make; everything else is installed into .venv on first use.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
DEMO_OUT := results/demo

# JAX must not pick up a half-configured accelerator during tests, and BLAS must not fight the test workers for cores.
test check-long check-onnxim: export JAX_PLATFORMS := cpu
test check-long check-onnxim: export OMP_NUM_THREADS := 1

.PHONY: demo test bench bench-quick profile lint format check-long check-onnxim clean

demo: $(STAMP)
	$(BIN)/vsim sweep sweeps/demo.yaml --out $(DEMO_OUT)
	$(BIN)/vsim figures $(DEMO_OUT)

# The recorded runs are repeated by what users get. Those of the unit tests are many programs that run for a second:
# XLA's optimisation of them takes longer. `make check-long` runs all tests without that shortcut.
QUICK_COMPILATION := --xla_backend_optimization_level=0

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) tests/golden tests/reference
	XLA_FLAGS=$(QUICK_COMPILATION) $(BIN)/python -m pytest -n $(WORKERS) tests/unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check-long: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow"

# CASES='--case NAME ...' runs some of them, CASES=--list names them.
check-onnxim: $(STAMP)
	$(BIN)/python -m tests.golden.onnxim_cases $(CASES)

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

bench-quick: $(STAMP)
	$(BIN)/python -m tests.benchmarks --quick

profile: $(STAMP)
	$(BIN)/python -m tests.benchmarks.profile

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "vsim needs Python 3.11 or later with venv; set PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) results .pytest_cache .ruff_cache .hypothesis
