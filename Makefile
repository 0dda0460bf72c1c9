# Two commands matter: `make demo` and `make test`. Each installs what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced

.PHONY: help packages test-packages env demo check test bench tamper-report support-matrix soak fuzz format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

# What tests alone need: mmdebstrap makes the real Debian on a disk that is attested as well, busybox is the
# other reader of our archives.
test-packages:
	@scripts/install-packages mmdebstrap busybox

packages:  ## install the Debian packages that virtual machines need (sudo where not root)
	@scripts/install-packages

env: $(STAMP)  ## make the locked Python environment in .venv

$(STAMP): pyproject.toml requirements/locked.txt scripts/make-environment
	@scripts/make-environment $(VENV)
	@touch $@

demo: packages env  ## attest a real VM, tamper with it, see it refused
	@$(BIN)/affiant demo $(ARGS)

check: env  ## the quick gate: format, lint, types, imports, unit tests, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/pytest -n 2 -m "not vm and not slow"

test: test-packages check  ## everything: the gate, then real VMs and servers
	$(BIN)/pytest -m "vm or slow"

bench: packages env  ## measure against peers and physical limits; prints tables
	$(BIN)/python -m benchmarks

tamper-report: packages env  ## try every way to tamper on every kernel; writes docs/tamper-report.md
	@$(BIN)/python -m lab.tamper.report $(ARGS)

support-matrix: packages env  ## boot and look at every supported kernel; writes the tables of docs/support-matrix.md
	@$(BIN)/python -m lab.support_matrix $(ARGS)

soak: packages env  ## look at healthy guests under load for long: ARGS="--minutes 30 --only NAME"
	@$(BIN)/python -m lab.soak $(ARGS)

fuzz: env  ## look for inputs that break a reader, FUZZ_SECONDS (600) in all
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --group fuzz
	@$(BIN)/python -m fuzz $(ARGS)

format: env  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

clean:  ## remove the environment and caches of this checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
