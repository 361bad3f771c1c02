# Needs Python >= 3.11 and make. Everything else is installed below this folder: uv in .tools, the locked packages in .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
UV = .tools/bin/uv
BIN = .venv/bin
export UV_NO_CONFIG = 1
export UV_PYTHON_DOWNLOADS = never

.PHONY: help
help: ## show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/ready ## install the locked packages into .venv

.tools/ready: requirements-tools.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Choose one with: make PYTHON=python3.12")'
	@echo "Installing uv into .tools ..."
	@$(PYTHON) -m venv .tools
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-tools.lock
	@touch $@

.venv/ready: .tools/ready requirements-dev.lock pyproject.toml
	@echo "Installing the locked packages into .venv ..."
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: setup ## watch the main job on real sockets and a real disk (under 30 s)
	@$(BIN)/agentic-sync demo

.PHONY: test
test: setup ## run the tests
	@echo "Running the tests ..."
	@$(BIN)/python -m pytest -q -n auto

.PHONY: lint
lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

.PHONY: check
check: lint ## everything that continuous integration runs: lint, types, tests with coverage, manifest
	@$(BIN)/agentic-sync manifest --check
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest -q -n auto
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

SECONDS ?= 600
KILLS ?= 500
SEED ?= 1

.PHONY: soak
soak: setup ## run for SECONDS under random faults, then die KILLS times, and see that nothing is lost (SEED)
	@$(BIN)/python -m tests.soak --seconds $(SECONDS) --kills $(KILLS) --seed $(SEED)

.PHONY: guards
guards: setup ## remove each guard of tests/guards in turn and see its tests fail (WORDS chooses)
	@$(BIN)/python tests/guards/remove.py $(WORDS)

.PHONY: test-all
test-all: setup ## run the tests on every Python from 3.11 that is found
	@$(BIN)/python tests/every_python.py

.venv/fuzz: .venv/ready requirements-fuzz.lock
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-fuzz.lock
	@touch $@

FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz: setup .venv/fuzz ## fuzz the decoders of frames, messages and params, FUZZ_SECONDS (60) each; Linux on x86-64
	@for target in frames messages params; do echo "Fuzzing $$target for $(FUZZ_SECONDS) s ..."; \
	  $(BIN)/python -m tests.fuzz.drive $$target $(FUZZ_SECONDS) || exit 1; done

.venv-bench/ready: .tools/ready requirements-bench.lock pyproject.toml
	@echo "Installing the benchmark's packages into .venv-bench ..."
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv-bench
	@$(UV) pip install --quiet --python .venv-bench/bin/python --require-hashes -r requirements-bench.lock
	@$(UV) pip install --quiet --python .venv-bench/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

RUNS ?= 5
.PHONY: bench
bench: setup .venv-bench/ready ## measure against peers and floors; a part with ROW=presence (RUNS)
	@.venv-bench/bin/python -m bench $(ROW) --runs $(RUNS)

.PHONY: lock
lock: .tools/ready ## resolve the dependencies anew
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-annotate --no-header --python-version 3.11 requirements-tools.in -o requirements-tools.lock
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-header --python-version 3.11 pyproject.toml -o requirements.lock
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-header --python-version 3.11 pyproject.toml --group dev -o requirements-dev.lock
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-header --python-version 3.11 --group fuzz -o requirements-fuzz.lock
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-header --python-version 3.11 pyproject.toml --group dev --group bench -o requirements-bench.lock

.PHONY: clean
clean: ## remove everything that make installed or wrote
	rm -rf .tools .venv .venv-* .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* dist
