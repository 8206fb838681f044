# The two commands are `make demo` and `make test`; both install what they need (apt, pip) and work on a fresh Debian 12 or 13.
# As an ordinary user they ask sudo for root, because servers run as their own user.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:

PYTHON ?= python3
MATRIX ?= 2.20:python3.12 2.21:python3.13
VENV ?= .venv
PEERS ?= yes
BIN := $(VENV)/bin
BUILD := .build
COLLECTIONS := $(CURDIR)/$(BUILD)/collections
INSTALLED := $(COLLECTIONS)/ansible_collections/pgfleet/ops
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$$PATH")
SOURCES := $(shell git ls-files -co --exclude-standard 2>/dev/null || find . -type f -not -path './.*')
export ANSIBLE_COLLECTIONS_PATH := $(COLLECTIONS)

.PHONY: help demo demo-down test test-packages lint sanity unit integration integration-long end-to-end bench endurance chaos matrix build clean \
  lab-ready lab-ready-trixie lab-up lab-down lab-shell molecule molecule-ci

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / - /'

# ---- what everything needs ------------------------------------------------------------------------------------------

$(VENV)/.controller: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "$(PYTHON) is $$($(PYTHON) --version): ansible-core 2.19 needs Python 3.11 to 3.13. Say which one: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(SUDO) apt-get update -qq; $(SUDO) apt-get install -y -qq python3-venv; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.tests: tests/requirements.txt requirements.txt $(VENV)/.controller
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

# The collection that this one depends on comes in pip's package `ansible`, so that pip is all that is needed.
$(COLLECTIONS)/ansible_collections/community/postgresql/MANIFEST.json: $(VENV)/.controller
	mkdir -p $(BUILD)/download
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(BUILD)/download 'ansible==12.*'
	$(BIN)/python tools/extract_collection.py $(BUILD)/download community.postgresql $(COLLECTIONS)
	rm -rf $(BUILD)/download

# What users get: the built artifact, installed.
$(INSTALLED)/MANIFEST.json: $(VENV)/.controller $(COLLECTIONS)/ansible_collections/community/postgresql/MANIFEST.json $(SOURCES)
	rm -f $(BUILD)/pgfleet-ops-*.tar.gz
	$(BIN)/ansible-galaxy collection build --force --output-path $(BUILD) >/dev/null
	$(BIN)/ansible-galaxy collection install --offline --force --collections-path $(COLLECTIONS) $(BUILD)/pgfleet-ops-*.tar.gz >/dev/null
	touch $@

build: $(INSTALLED)/MANIFEST.json ## build the collection and install it below .build/

# ---- the demo -------------------------------------------------------------------------------------------------------

demo: build ## a whole site on this machine, and a switchover under load
	@$(SUDO) $(BIN)/python tools/demo.py up

demo-down: $(VENV)/.controller ## remove the demo completely
	@$(SUDO) $(BIN)/python tools/demo.py down

# ---- tests ----------------------------------------------------------------------------------------------------------

test: lint sanity unit integration end-to-end molecule-ci ## everything that CI runs

test-packages:
	@$(SUDO) tools/install_test_packages.sh

lint: $(VENV)/.tests build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check plugins
	tools/in_collection_tree.sh $(BUILD)/tree '$(CURDIR)/$(BIN)/ansible-lint --offline --profile production --strict'

sanity: $(VENV)/.tests test-packages
	$(BIN)/python tools/pip_for_ansible_test.py
	version=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	tools/in_collection_tree.sh $(BUILD)/tree "$(CURDIR)/$(BIN)/ansible-test sanity --venv --python $$version --color no"

matrix: $(VENV)/.tests ## unit tests with newer ansible-core: make matrix MATRIX="2.20:python3.12 2.21:python3.13"
	$(BIN)/python tools/link_checkout.py
	for pair in $(MATRIX); do
	  core=$${pair%%:*}; python=$${pair#*:}; venv=.venv-$$core
	  test -x $$venv/bin/pytest || { $$python -m venv $$venv; $$venv/bin/pip install --quiet --disable-pip-version-check "ansible-core==$$core.*" configobj pytest pytest-xdist hypothesis "psycopg[binary]"; }
	  echo "== ansible-core $$core on $$($$python --version)"
	  $$venv/bin/pytest -q -n 2 tests/unit
	done

unit: $(VENV)/.tests
	$(BIN)/python tools/link_checkout.py
	$(BIN)/pytest -q -n 2 tests/unit

integration: MARKED := not long
integration-long: MARKED := long
integration-long: ## the integration tests that make test leaves out
integration integration-long: $(VENV)/.tests test-packages build
	$(BIN)/python tools/link_checkout.py
	# Each file on one worker, those of minutes first (tests/integration/conftest.py). Servers that a test kills need a parent that collects them, or PostgreSQL takes
	# them for living ones: process 1 of a container may be late with it or never do it.
	$(SUDO) tini -s -- $(BIN)/pytest -q -n 4 --dist loadfile --no-loadscope-reorder --durations 25 tests/integration -m '$(MARKED)'

end-to-end: build
	@$(SUDO) $(BIN)/python tools/demo_test.py

bench: $(VENV)/.tests test-packages ## switchover and failover beside Patroni, HandyRep and the same by hand, clone, registration and foreign data beside tools (PEERS=no: without Patroni)
	peers=
	if [ "$(PEERS)" != no ]; then
	  $(SUDO) tools/install_bench_packages.sh && peers=--peers || echo "the packages of Patroni cannot be installed: without it" >&2
	fi
	$(SUDO) tini -s -- $(BIN)/python tests/bench/switchover.py $$peers
	$(SUDO) tini -s -- $(BIN)/python tests/bench/failover.py $$peers
	$(SUDO) tini -s -- $(BIN)/python tests/bench/clone.py
	$(SUDO) tini -s -- $(BIN)/python tests/bench/powa_servers.py
	$(SUDO) tini -s -- $(BIN)/python tests/bench/foreign_data.py

SWITCHOVERS ?= 100

endurance: $(VENV)/.tests test-packages ## many switchovers in a row under clients that come and go: make endurance SWITCHOVERS=100
	$(SUDO) tini -s -- $(BIN)/python tests/bench/endurance.py --switchovers $(SWITCHOVERS)

SEED ?=
CASES ?= 200
JOBS ?= 2

chaos: $(VENV)/.tests test-packages ## switchovers and failovers with a fault at each step: make chaos SEED=7 CASES=200 JOBS=2
	$(BIN)/python tools/link_checkout.py
	$(SUDO) tini -s -- $(BIN)/python tests/chaos/run.py --cases $(CASES) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

# ---- several hosts --------------------------------------------------------------------------------------------------

# Another ansible-core for the playbooks: make molecule-site LAB_CORE=2.21 PYTHON=python3.13
LAB_CORE ?=
LAB_VENV ?= .venv-lab$(addprefix -,$(LAB_CORE))
LAB := $(SUDO) tools/lab/lab.sh
# Keys, secrets and addresses of the hosts that are up.
export LAB_DIRECTORY := $(CURDIR)/$(BUILD)/lab
export MOLECULE_EPHEMERAL_DIRECTORY := $(CURDIR)/$(BUILD)/molecule
IN_LAB := env "PATH=$(CURDIR)/$(LAB_VENV)/bin:$$PATH" MOLECULE_COMMAND_BORDERS=false

$(LAB_VENV)/.ready: requirements.txt tests/lab-requirements.txt
	test -x $(LAB_VENV)/bin/pip || $(PYTHON) -m venv $(LAB_VENV)
	sed 's/^ansible-core.*/$(if $(LAB_CORE),ansible-core==$(LAB_CORE).*,&)/' requirements.txt tests/lab-requirements.txt >$(LAB_VENV)/requirements.txt
	$(LAB_VENV)/bin/pip install --quiet --disable-pip-version-check -r $(LAB_VENV)/requirements.txt
	touch $@

# What takes a way to mirrors is done before: the lab has none.
lab-ready: $(LAB_VENV)/.ready build
	@$(SUDO) tools/install_lab_packages.sh
	$(SUDO) tools/lab/image.sh bookworm >/dev/null
	$(SUDO) rm -rf $(MOLECULE_EPHEMERAL_DIRECTORY)

lab-ready-trixie: lab-ready
	$(SUDO) tools/lab/image.sh trixie >/dev/null

lab-up: lab-ready ## six hosts with systemd, reached over ssh; those that are there are made anew
	$(LAB) up
	$(LAB) exec $(IN_LAB) molecule create
	echo "Log in with make lab-shell HOST=db1; make lab-down removes them."

lab-down: ## remove the hosts
	$(LAB) exec podman network rm --force pgfleet-lab >/dev/null 2>&1 || true
	$(LAB) down
	$(SUDO) rm -rf $(LAB_DIRECTORY) $(MOLECULE_EPHEMERAL_DIRECTORY)

lab-shell: ## log in to one of them: make lab-shell HOST=db1
	@test -n "$(HOST)" || { echo "Which host? make lab-shell HOST=db1" >&2; exit 2; }
	@$(LAB) exec ssh -F $(LAB_DIRECTORY)/ssh_config $(HOST)

# The second ones also need hosts of Debian 13.
ON_BOOKWORM := site switchover partition as_users_run_it powa_datasource clone_and_rejoin failover handyrep_migration
ON_TRIXIE := trixie move_powa
SCENARIOS ?= $(ON_BOOKWORM) $(ON_TRIXIE)

molecule: $(if $(filter $(ON_TRIXIE),$(SCENARIOS)),lab-ready-trixie,lab-ready) ## all scenarios on several hosts; one of them: make molecule-site
	$(LAB) run $(IN_LAB) LAB_INVENTORY=$(if $(filter $(ON_TRIXIE),$(SCENARIOS)),.,hosts.yml) molecule test $(patsubst %,-s %,$(SCENARIOS))

molecule-ci: lab-ready ## a site, a switchover and cut links on several hosts, and that the lab leaves nothing behind
	$(SUDO) $(IN_LAB) $(LAB_VENV)/bin/pytest -q -p no:cacheprovider tests/lab
	$(LAB) run $(IN_LAB) PYTEST_ADDOPTS='-m "not long"' molecule test -s site -s switchover -s partition

$(patsubst %,molecule-%,$(ON_TRIXIE)): molecule-%: lab-ready-trixie
	$(LAB) run $(IN_LAB) LAB_INVENTORY=. molecule test -s $*

molecule-%: lab-ready
	$(LAB) run $(IN_LAB) molecule test -s $*

clean: ## remove what make has built
	rm -rf $(BUILD) $(VENV) .venv-* .ansible .pytest_cache .ruff_cache .mypy_cache
