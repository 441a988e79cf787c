# Two commands for a bare machine with Python 3.11 or later: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Three at a time, for they often wait, each class or file on one side, in their order: campaigns, the longest, come
# early. Not those that measure times and load: they have the machine for themselves.
SIDE_BY_SIDE = -n 3 --dist loadscope --no-loadscope-reorder -m 'not timed'
TIMED = -m timed $(shell grep -rl mark.timed tests --include='test_*.py')

# Those that are tried beside the oldest, 3.11.
LATER_PYTHONS = 3.12 3.13 3.14

.DEFAULT_GOAL := help
CAMPAIGNS = interleavings kills purges outages failover crowds backlog stateful hostile-input keys-under-attack
.PHONY: help run test quick test-lowest test-pythons check clean mutation bench screenshots
.PHONY: $(CAMPAIGNS:%=campaign-%) $(LATER_PYTHONS:%=test-python-%)

help: ## Show this list
	@grep -hE '^[a-z0-9.-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: $(VENV)/installed-example ## Start the example server (ARGS="--port 8001")
	$(VENV)/bin/python -m example_app $(ARGS)

test: $(VENV)/installed-dev ## Run all tests, or some (ARGS="-k wire")
ifeq ($(ARGS),)
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE)
	$(VENV)/bin/python -m pytest $(TIMED)
else
	$(VENV)/bin/python -m pytest $(ARGS)
endif

QUICK = -m pytest $(SIDE_BY_SIDE) --quick -q -rfE tests/unit tests/contract tests/integration
quick: check ## Lint, types, layers, and the tests on SQLite and in memory, in two minutes
	$(VENV)/bin/python $(QUICK) $(ARGS)

# Of the contract one status by each path: kinds of status are ours.
CONTRACTS = TestOurColumns TestListeners
# What leans on the libraries, without the slow waits for a node of a cluster; waits, plans and refusals are the
# servers'. The lowest PyMySQL is nearly the newest.
OF_LIBRARIES = host_* hosts engines migrations status_kinds sql_sent sql_sent_again two_kinds other_clients cluster wire_contract routes rights docs_page
# Only the oldest Python will do: some of the lowest versions have no wheels for a later one, or fail on it.
test-lowest: ## Run the unit tests and those of the libraries on the lowest versions that setup.cfg allows
	$(MAKE) VENV=$(VENV)-lowest $(VENV)-lowest/installed-lowest \
	    PYTHON="$(or $(call found,3.11),$(error Python 3.11 is neither on PATH nor known to pyenv or uv))"
	$(VENV)-lowest/bin/python -m pytest $(SIDE_BY_SIDE) -k "not valkey and not mariadb and not TestANodeThatIsAway" $(ARGS) \
	    tests/unit tests/contract/test_key_value_stores.py $(CONTRACTS:%=tests/contract/test_repositories.py::%) $(wildcard $(OF_LIBRARIES:%=tests/integration/test_%.py))

test-pythons: $(LATER_PYTHONS:%=test-python-%) ## Run the quick tests on each later Python that is found
$(LATER_PYTHONS:%=test-python-%): test-python-%:
	$(if $(call found,$*),$(MAKE) VENV=$(VENV)-$* $(VENV)-$*/installed-dev PYTHON="$(call found,$*)")
	$(if $(call found,$*),$(VENV)-$*/bin/python $(QUICK) $(ARGS),@echo "Python $* is not found, so it is not tried.")

campaign-interleavings: ## Every interleaving of two and three operations, with every fault (SIZE=3)
campaign-kills: ## kill -9 at every named moment, and at random ones under load (SIZE=1000)
campaign-purges: ## Purges killed in their middle, and four at once (SIZE=100000)
campaign-outages: ## Both stores away, slow, hung and cut off (SIZE=60, in seconds)
campaign-failover: ## PostgreSQL's primary killed under load, its standby promoted (SIZE=100)
campaign-crowds: ## 64 equal requests at once, four reconciles at once (SIZE=1000)
campaign-backlog: ## Four reconciles at once on a large backlog, one entry refused, one row locked (SIZE=200000)
campaign-stateful: ## Random programs against a model; on real stores a twentieth of them (SIZE=10000)
campaign-hostile-input: ## schemathesis over the OpenAPI document (SIZE=10000)
campaign-keys-under-attack: ## Mutated admin keys (SIZE=100000)
$(CAMPAIGNS:%=campaign-%): campaign-%: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest $(wildcard tests/campaigns/test_$(subst -,_,$*)*.py) $(if $(SIZE),--size $(SIZE)) $(ARGS)

mutation: $(VENV)/installed-dev ## Break the core in every small way; see what the tests catch (hours)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m tests.servers mutmut run --max-children 1 $(ARGS)

bench: $(VENV)/installed-bench ## Measure this package beside what others would write (ARGS="--rounds 3"; ten minutes)
	$(VENV)/bin/python -m benchmarks $(ARGS)

check: $(VENV)/installed-dev ## Lint, types, layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

screenshots: $(VENV)/installed-dev ## Take the pictures of the console anew, in docs/images
	REQUIRE_SERVICES=1 $(VENV)/bin/python -m pytest tests/browser -k outage --pictures docs/images $(ARGS)

clean: ## Remove the virtual environments and the example's data
	rm -rf $(VENV) $(VENV)-lowest $(LATER_PYTHONS:%=$(VENV)-%) instance mutants

$(VENV)/installed-%: setup.cfg pyproject.toml
	$(made)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

# What stands above the extra dev is pinned: `name>=1` as `name==1`. Of dev are left out the tools that these tests
# do without; import-linter, mutmut and schemathesis want a newer click or pytest.
$(VENV)/installed-lowest: setup.cfg pyproject.toml
	$(made)
	sed -nE '/^dev =/q; s/^.*[ =]([a-z0-9-]+)(\[[a-z]+\])?>=/\1==/p' setup.cfg | tee $(VENV)/lowest.txt
	sed -nE '/^dev =/,/^$$/ s/^    ([a-z].*)/\1/p' setup.cfg \
	    | grep -vE '^(axe-|celery|gevent|gunicorn|import-linter|kubernetes|mutmut|mypy|opentelemetry|pillow|playwright|pyright|pytest-cov|ruff|schemathesis)' >$(VENV)/hosts.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)/lowest.txt \
	    --requirement $(VENV)/hosts.txt --editable '.[example,mariadb,postgresql,testing]'
	touch $@

# Makes the venv, unless there is one of use: an old Python, or an interrupted run, leaves one that is not.
made = $(if $(call suits,$(VENV)/bin/python,pip),,$(refused) \
    $(PYTHON) -m venv$(if $(wildcard $(VENV)/pyvenv.cfg), --clear) $(VENV))

# Ends make where PYTHON cannot make it: on an older one pip would look for minutes for releases that suit it.
refused = $(if $(call suits,$(PYTHON),sys),,$(error $(too_old)))$(if $(call suits,$(PYTHON),ensurepip),,$(error $(no_pip)))
too_old = $(PYTHON) is $(or $(version:%=Python %),not found); 3.11 or later is needed: \
    PYTHON=python3.12 make $(MAKECMDGOALS)
no_pip = $(PYTHON) has no ensurepip, so it can make no venv; on Debian: apt install python$(version)-venv
version = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# "yes" where the program is Python 3.11 or later, and has the module.
suits = $(shell $(1) -c 'import sys, $(2); print("yes" if sys.version_info >= (3, 11) else "")' 2>/dev/null)

# A Python of the version that runs: on PATH, where a shim of pyenv may not, or as pyenv or uv keeps it.
found = $(shell for python in \
    python$(1) "$$(pyenv prefix $(1))/bin/python$(1)" "$$(uv python find --system $(1))"; do \
    "$$python" -c '' && echo "$$python" && break; done 2>/dev/null)
