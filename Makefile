# Two commands for a bare machine with Python 3.11 or later: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Two at a time, each class or file on one side; not the campaigns, which measure times and load.
SIDE_BY_SIDE = -n 2 --dist loadscope

.DEFAULT_GOAL := help
CAMPAIGNS = interleavings kills outages crowds stateful hostile-input keys-under-attack
.PHONY: help run test quick test-sqlalchemy-2.0 check clean mutation $(CAMPAIGNS:%=campaign-%)

help: ## Show this list
	@grep -hE '^[a-z0-9.-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: $(VENV)/installed-example ## Start the example server (ARGS="--port 8001")
	$(VENV)/bin/python -m example_app $(ARGS)

test: $(VENV)/installed-dev ## Run all tests, or some (ARGS="-k wire")
ifeq ($(ARGS),)
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) --ignore tests/campaigns
	$(VENV)/bin/python -m pytest tests/campaigns
else
	$(VENV)/bin/python -m pytest $(ARGS)
endif

quick: check ## Lint, types, layers, and the tests on SQLite and in memory, in under a minute
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) --quick -q -rfE tests/unit tests/contract tests/integration $(ARGS)

test-sqlalchemy-2.0: ## Run the tests that touch a database on SQLAlchemy 2.0
	$(MAKE) VENV=$(VENV)-sqlalchemy-2.0 $(VENV)-sqlalchemy-2.0/installed-dev
	$(VENV)-sqlalchemy-2.0/bin/python -m pip install --quiet --disable-pip-version-check 'sqlalchemy>=2.0.28,<2.1'
	$(VENV)-sqlalchemy-2.0/bin/python -m pytest $(SIDE_BY_SIDE) tests/contract/test_repositories.py tests/integration -k "not valkey" $(ARGS)

campaign-interleavings: ## Every interleaving of two and three operations, with every fault (SIZE=3)
campaign-kills: ## kill -9 at every named moment, and at random ones under load (SIZE=1000)
campaign-outages: ## Both stores away, slow, hung and cut off (SIZE=60, in seconds)
campaign-crowds: ## 64 equal requests at once, four reconciles at once (SIZE=1000)
campaign-stateful: ## Random programs against a model; on real stores a twentieth of them (SIZE=10000)
campaign-hostile-input: ## schemathesis over the OpenAPI document (SIZE=10000)
campaign-keys-under-attack: ## Mutated admin keys (SIZE=100000)
$(CAMPAIGNS:%=campaign-%): campaign-%: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest $(wildcard tests/campaigns/test_$(subst -,_,$*)*.py) $(if $(SIZE),--size $(SIZE)) $(ARGS)

mutation: $(VENV)/installed-dev ## Break the core in every small way; see what the tests catch (hours)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m tests.servers mutmut run --max-children 1 $(ARGS)

check: $(VENV)/installed-dev ## Lint, types, layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean: ## Remove the virtual environment and the example's data
	rm -rf $(VENV) $(VENV)-sqlalchemy-2.0 instance mutants

$(VENV)/installed-%: setup.cfg pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
