# Two commands for a bare machine with Python 3.11 or later: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-sqlalchemy-2.0 check clean

help: ## Show this list
	@grep -hE '^[a-z0-9.-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: $(VENV)/installed-example ## Start the example server (ARGS="--port 8001")
	$(VENV)/bin/python -m example_app $(ARGS)

test: $(VENV)/installed-dev ## Run all tests (ARGS="-k wire")
	$(VENV)/bin/python -m pytest $(ARGS)

test-sqlalchemy-2.0: ## Run the tests that touch a database on SQLAlchemy 2.0
	$(MAKE) VENV=$(VENV)-sqlalchemy-2.0 $(VENV)-sqlalchemy-2.0/installed-dev
	$(VENV)-sqlalchemy-2.0/bin/python -m pip install --quiet --disable-pip-version-check 'sqlalchemy>=2.0.28,<2.1'
	$(VENV)-sqlalchemy-2.0/bin/python -m pytest tests/contract tests/integration $(ARGS)

check: $(VENV)/installed-dev ## Lint, types, layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean: ## Remove the virtual environment and the example's data
	rm -rf $(VENV) $(VENV)-sqlalchemy-2.0 instance

$(VENV)/installed-%: setup.cfg pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
