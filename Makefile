# The same commands for people and for CI. Every target builds .venv first and is quick the second time.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# make bench PROFILE=full measures everything (hours); quick takes about ten minutes.
PROFILE ?= quick
STAMP  := $(VENV)/.installed

.PHONY: demo test lint slow bench gpu clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py --out build/demo

# A worker a core, one thread each.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4

slow: $(STAMP)
	$(BIN)/pip install --quiet --editable ".[ray]"
	$(BIN)/python -m pytest -m slow

# Benchmarks are checked for calls and names that no longer fit, not for strict types.
LOOSE = misc var-annotated union-attr index assignment arg-type dict-item import-untyped import-not-found
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy $(addprefix --disable-error-code=,$(LOOSE)) benchmarks/*.py
	$(BIN)/python -m pytest -m lint --durations=0 --durations-min=5 tests/lint

bench: $(STAMP)
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/run.py --profile $(PROFILE)

# On a machine with one GPU and CUDA's torch; at most ten minutes, no network once .venv is there.
gpu:  # by the virtual environment if there is one, else by PYTHON: the machine may have no network to make one
	$(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --out build/gpu

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache
