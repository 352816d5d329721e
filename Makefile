# Needs Python 3.11 or newer and make; everything else goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PYTHON_RUN := $(BIN)/python
STAMP := .venv/.installed

# Processes for the tests that may share a machine, and more arguments for every pytest run: make test ARGS="-k ledger".
JOBS ?= 2
ARGS ?=
# Requests of each kind that `make fuzz` sends.
FUZZ ?= 5000
# Seconds that it then goes on by coverage; 0 leaves that out.
FUZZ_SECONDS ?= 60
# Seeds that `make soak` runs the simulation with.
SEEDS ?= 5000

# Tests that start real Ray clusters or whole platforms come after all others, a file of them at a time.
HEAVY_TESTS := tests/integration/on_ray tests/e2e
SOAK_TESTS := $(wildcard tests/soak)
LIGHT_IGNORES := $(addprefix --ignore=,$(HEAVY_TESTS) $(SOAK_TESTS))
# An empty selection (pytest's status 5) is a success only when ARGS narrowed it.
NONE_SELECTED = $(if $(strip $(ARGS)),{ status=$$?; [ $$status -eq 5 ] || exit $$status; },exit $$?)

.PHONY: help install demo test check format bench soak fuzz protos protos-baseline chart sbom audit-deps clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
		while IFS=$$'\t' read -r name text; do printf '  make %-16s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## Make .venv with everything for running, testing and developing

$(STAMP): pyproject.toml tools/install.sh
	@tools/install.sh

demo: $(STAMP) ## Two institutions, two regions, real data: run the demonstration on this machine
	$(BIN)/suanli demo

test: $(STAMP) ## Run every test (JOBS=2 ARGS="-k name")
	$(PYTHON_RUN) -m pytest -q -n $(JOBS) --dist worksteal $(LIGHT_IGNORES) tests $(ARGS) || $(NONE_SELECTED)
	$(PYTHON_RUN) -m pytest -q -n $(JOBS) --dist loadfile $(HEAVY_TESTS) $(ARGS) || $(NONE_SELECTED)

check: $(STAMP) ## Lint, types, import directions, contract, stubs, dashboards and chart
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against protos/baseline.binpb
	$(PYTHON_RUN) -m tools.protos --check
	$(PYTHON_RUN) -m tools.reference --check
	$(PYTHON_RUN) -m tools.dashboards --check
	$(PYTHON_RUN) -m tools.chart

format: $(STAMP) ## Format Python and proto sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

bench: $(STAMP) ## Run the benchmarks; each prints JSON on its last line
	$(PYTHON_RUN) -m benchmarks.frontdoor
	$(PYTHON_RUN) -m benchmarks.throughput
	$(PYTHON_RUN) -m benchmarks.planner
	$(PYTHON_RUN) -m benchmarks.forecast
	$(PYTHON_RUN) -m benchmarks.metering

soak: $(STAMP) ## Simulate many seeds (SEEDS=5000) and a ledger of 100,000 jobs, try new examples of properties, run the long tests
	SUANLI_SIM_SEEDS=$(SEEDS) $(PYTHON_RUN) -m pytest -q --timeout=0 -n $(JOBS) tests/simulation $(ARGS)
	$(PYTHON_RUN) -m tests.simulation.ledger_month
	SUANLI_HYPOTHESIS=soak $(PYTHON_RUN) -m pytest -q --timeout=0 -n $(JOBS) tests/property $(ARGS)
ifneq ($(SOAK_TESTS),)
	$(PYTHON_RUN) -m pytest -q --timeout=0 $(SOAK_TESTS) $(ARGS)
endif

fuzz: $(STAMP) ## Send senseless and damaged requests to every call (FUZZ=5000 of each; FUZZ_SECONDS=60 by coverage, extra `fuzz`)
	SUANLI_HYPOTHESIS=soak SUANLI_FUZZ_EXAMPLES=$(FUZZ) $(PYTHON_RUN) -m pytest -q --timeout=0 -n $(JOBS) tests/property/test_fuzz_rpcs.py $(ARGS)
ifneq ($(FUZZ_SECONDS),0)
	$(PYTHON_RUN) -m tests.fuzz --seconds $(FUZZ_SECONDS)
endif

protos: $(STAMP) ## Generate the Python stubs of protos/
	$(PYTHON_RUN) -m tools.protos

# The contract that `make check` compares with. Run it when a release is made, or on purpose before the first one: the
# change of the file then shows in review that the contract was broken.
protos-baseline: $(STAMP) ## Take the contract as it stands for the one that must not break
	$(BIN)/buf build --exclude-source-info --output protos/baseline.binpb

chart: $(STAMP) ## Lint and render the Helm chart and check what it renders
	$(PYTHON_RUN) -m tools.chart

sbom: $(STAMP) ## Write the bill of materials of the installed product, dist/suanli.cdx.json (CycloneDX)
	$(PYTHON_RUN) -m tools.sbom

# Asks PyPI, so it is no part of `make check`. A package that could not be looked up is a failure, too.
audit-deps: $(STAMP) ## Look for known vulnerabilities in what the product needs (needs the network)
	@mkdir -p build
	$(PYTHON_RUN) -m tools.sbom --requirements > build/requirements.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r build/requirements.txt

clean: ## Delete .venv, fetched tools, caches and build output
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info demo-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
