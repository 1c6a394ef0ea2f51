# Sparsight in a few verbs. `make demo` and `make test` work in a fresh clone with Python 3.11 or 3.12, pip and make.
STORE ?= ./store
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH ?= rollout
# Processes for the tests that need no Ray.
TEST_PROCESSES ?= 2

BIN := .venv/bin
RUN_STAMP := .venv/.installed-run
DEV_STAMP := .venv/.installed-dev

# One thread a process: several run beside each other, and threads of the simulator or of torch would only fight.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport METTAGRID_OBS_THREADS

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test chaos check lint types layers dependencies spelling manifests docs bench clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(DEV_STAMP)  ## create .venv with everything that tests and checks need

$(BIN)/python:
	@for python in python3.11 python3 python3.12; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
	    echo "creating .venv with $$($$python --version)"; exec $$python -m venv --clear .venv; \
	  fi; \
	done; \
	echo "Sparsight needs Python 3.11 or 3.12; found $$(python3 --version 2>&1). Install one, then run make again." >&2; \
	exit 1

# torch first: it is the largest download, and the rest then resolves against the build that this machine got.
$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --progress-bar off torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --progress-bar off -e . -c constraints.txt
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet --progress-bar off -e '.[test,check]' -c constraints.txt
	@touch $@

demo: $(RUN_STAMP)  ## run the main job, small: train, record, decompose, score, steer, report
	$(BIN)/sparsight pipeline demo --store $(STORE) --study demo $(DEMO_ARGS)

test: $(DEV_STAMP)  ## run the test suite (PYTEST_ARGS='-k store' narrows it)
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) -m 'not ray and not long and (not chaos or everyday)' $(PYTEST_ARGS)
	$(BIN)/python -m pytest -q -m 'ray and not long and (not chaos or everyday)' $(PYTEST_ARGS)

chaos: $(DEV_STAMP)  ## kill writers and break servers at every step, and other long tests (the slow half)
	$(BIN)/python -m pytest -q -m 'chaos or long' $(PYTEST_ARGS)

check: lint types layers dependencies spelling manifests docs  ## lint, format, types, layers, dependencies, spelling, manifests, docs (-k: all)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP)
	$(BIN)/basedpyright

layers: $(DEV_STAMP)
	$(BIN)/lint-imports --no-cache

dependencies: $(DEV_STAMP)
	$(BIN)/deptry .

spelling: $(DEV_STAMP)
	$(BIN)/codespell

# Without a cluster and without the network; OVERLAY=k8s/overlays/mine checks one of your own.
manifests: $(DEV_STAMP)
	$(BIN)/python -m tests.k8s.check $(OVERLAY)

# The guides lie where a reader of the repository looks for them; pages need them below one folder.
docs: $(DEV_STAMP)  ## render the guides as pages, build/site/index.html; a broken link is an error
	rm -rf build/pages && mkdir -p build/pages/k8s
	cp -r README.md CHANGELOG.md docs build/pages/ && cp k8s/README.md build/pages/k8s/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(DEV_STAMP)  ## measure ours beside public peers (BENCH=rollout, or lstm, train, scaling, scoring, calibration, control_plane, rows, sequences, sae, sweep, recovery, steering; ARGS="--actors 1 2" for steering by several)
	$(BIN)/python -m benchmarks.$(BENCH) $(ARGS)

clean:  ## remove caches and build outputs; keeps .venv and the store
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find interp cluster jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
