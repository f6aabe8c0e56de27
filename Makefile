# Everything from a fresh clone: `make demo`, `make test`. `make help` lists the rest.
# PYTHON=/path/to/python3 makes the virtual environment with another Python than Debian's;
# ARGS="-k freeze -x" goes to pytest, which runs TEST_PROCESSES processes side by side, or to the
# benchmark (ARGS=cold, ARGS="cold --rounds 1"). PREFIX and DESTDIR say where `make install` installs.

PYTHON ?=
ARGS ?=
TEST_PROCESSES ?= 2
BIN := .venv/bin

# Root must not lose the Ceph tests to a silent skip.
CEPH := $(if $(filter 0,$(shell id -u)),MODELFS_REQUIRE_CEPH=1)

export PYTHON
export DESTDIR PREFIX

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-versions lint format install uninstall package clean
.SILENT:

help: ## list the targets
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## show everything, in a throw-away folder
	tools/setup demo
	$(BIN)/modelfs demo

test: ## run every test (as root, those against Ceph too)
	tools/setup test
	echo "test: pytest $(ARGS)"
	$(CEPH) $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadgroup $(ARGS)

bench: ## measure reading and writing beside rclone and s3fs on Ceph (root; an hour)
	tools/setup bench
	echo "bench: python -m benchmarks.bench $(ARGS)"
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-versions: ## measure versions on Ceph: read, frozen again, 1,000 models (root; 20 minutes)
	tools/setup bench
	echo "bench-versions: python -m benchmarks.versions $(ARGS)"
	$(BIN)/python -m benchmarks.versions $(ARGS)

lint: ## check style, types and the order of imports
	tools/setup lint
	echo "lint: ruff check"
	$(BIN)/ruff check --quiet .
	echo "lint: ruff format --check"
	$(BIN)/ruff format --quiet --check .
	echo "lint: mypy"
	$(BIN)/mypy --no-error-summary
	echo "lint: lint-imports"
	$(BIN)/lint-imports --no-logo

format: ## let ruff format the code
	tools/setup lint
	echo "format: ruff"
	$(BIN)/ruff check --quiet --fix --select I .
	$(BIN)/ruff format --quiet .

install: ## put modelfs on this machine: program, units, mount helpers, man pages, completion
	tools/setup install
	tools/install install

uninstall: ## take away what `make install` made; configuration and stores stay
	tools/install uninstall

package: ## build the wheel and the source package, and try the wheel in a fresh environment
	tools/setup package
	tools/package

clean: ## remove what these targets made
	echo "clean: .venv, caches, build results"
	rm -rf .venv build dist *.egg-info .hypothesis .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
