# Everything sets itself up: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Another Python than the pinned one resolves its own versions.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
DEMO := demo
# What proves the figures stands outside the installation.
PROVE := PYTHONPATH=$(CURDIR)/prove $(BIN)/python

.PHONY: setup demo docs test check prove clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip $(CONSTRAINTS)
	$(BIN)/pip install --quiet $(CONSTRAINTS) -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(PROVE) -m refsam_prove.demo $(DEMO)

# A site that needs no network, with links checked; not part of `make test`.
docs: $(STAMP)
	$(BIN)/pip install --quiet $(CONSTRAINTS) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=prove $(BIN)/lint-imports

# --dist loadfile keeps the tests of one file in one process: they share models and bundles.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu and not trt and not weights"

prove: $(STAMP)
	$(BIN)/pytest -m "slow"
	$(PROVE) -m refsam_prove.steps
	$(PROVE) -m refsam_prove.figures

clean:
	rm -rf $(VENV) $(DEMO) build dist
