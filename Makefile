# Short names for long commands. `make help` lists them.

PYTHON ?= python3
CONFIG ?= jobs/configs/quickstart.yaml
PYTEST_ARGS ?=
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help quickstart serve test check format doctor clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY) ## run the whole line on this machine: data to endpoint
	@$(BIN)/tunewright run $(CONFIG)

serve: $(READY) ## keep the endpoint up until Ctrl-C
	@$(BIN)/tunewright deploy $(CONFIG)

test: $(READY) ## all tests (PYTEST_ARGS="-k name" for some)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(READY) ## format, lint, types, import rows and layout
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layout.py

format: $(READY) ## rewrite the code as `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

doctor: $(READY) ## look at this machine
	@$(BIN)/tunewright doctor

bench-%: $(READY) ## one benchmark, such as bench-quickstart
	@$(BIN)/python benchmarks/$*.py

clean: ## remove the environment and what tools leave behind
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis platform/*.egg-info

# The environment: made again when the requirements change. Torch goes first and alone, so that a
# download that breaks off is the only thing to repeat.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || \
	  { echo "Tunewright needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make environments: install its venv package (Debian: apt install python3-venv)" >&2; exit 2; }
	@echo "== installing into .venv: about 1 to 5 minutes, 2 GB of disk; once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== 1/2 torch"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off torch -c constraints.txt
	@echo "== 2/2 Tunewright and the rest"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[dev]' -c constraints.txt
	@touch $@
