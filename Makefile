# Every target sets up what it needs: `make demo` on a fresh clone is enough.
# Nothing is written outside this folder and the data folder.

# python3 if it is 3.11 or newer, else another; `make PYTHON=/path/to/python …` overrides.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
export BUF_CACHE_DIR := $(CURDIR)/.venv/.buf-cache
export UV_PYTHON_DOWNLOADS := never
export UV_CACHE_DIR ?= $(CURDIR)/.venv/.uv-cache
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv

.DEFAULT_GOAL := help
.PHONY: help install run demo test check format gen baseline bench bench-memory chaos chaos-memory chaos-runs clean example-node

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Set up .venv from uv.lock; the other targets call it.

# uv goes into the project's own environment; it is locked like everything else.
$(INSTALLED): pyproject.toml uv.lock
	@test -n "$(PYTHON)" || { echo "Janus needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu the package python3-venv adds that"; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing Janus into .venv …"
	@$(BIN)/uv sync --quiet --locked --all-extras --all-groups --compile-bytecode
	@$(BIN)/python -m compileall -q services gen
	@touch $@

run: install ## Start the mesh with everything embedded and stay up.
	@$(BIN)/janus serve

demo: install ## Show the main job: converse, kill -9, restart, remember.
	@$(BIN)/janus demo

test: install ## Run the tests, without those that kill at random for longer.
	$(BIN)/python -m pytest -n auto --dist worksteal --ignore-glob='*_chaos.py'

check: install ## Format, lint, types, layers, protos, generated code.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/check.py

format: install ## Format code and protos.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/buf format -w protos

gen: install ## Generate gen/janus_api from protos/.
	$(BIN)/python protos/generate.py

baseline: install ## Accept the protos as they are as what may not break; part of a release.
	$(BIN)/python protos/generate.py --baseline

bench: install ## Measure the mesh, what inference adds, and runs; PEERS=1 measures another gateway as well.
	@$(BIN)/python -m tests.bench.mesh
	@echo
	@$(BIN)/python -m tests.bench.inference
	@echo
	@$(BIN)/python -m tests.bench.runs

bench-memory: install ## Measure recall: what it finds, how long it takes; ARGS='--tenants 1000 --only tenants' and the like.
	@$(BIN)/python -m tests.bench.memory $(ARGS)

chaos: install ## Kill processes and stores at random: the part of the tests that `make test` leaves out.
	$(BIN)/python -m pytest -n auto --dist worksteal tests/integration/*_chaos.py
	@$(MAKE) chaos-runs

chaos-runs: install ## Kill and freeze replicas, workers and stores under 300 runs, then compare what everybody saw; ARGS='--seed 7' and the like.
	@$(BIN)/python -m tests.chaos.runs $(ARGS)

example-node: install ## Try the example worker in Node of deploy/workers/node; needs node and npm.
	@cd deploy/workers/node && npm ci --no-audit --no-fund
	$(BIN)/python -m pytest tests/integration/test_worker_processes.py -k "example and node"

chaos-memory: install ## Kill memory and its stores under load, then look for what is lost or back; ARGS='--seed 7' and the like.
	@$(BIN)/python -m tests.chaos.memory $(ARGS)

clean: ## Remove everything that was installed or cached here.
	rm -rf .venv .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
