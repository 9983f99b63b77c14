# Everything from set-up to bench. A fresh machine needs Python >= 3.11, make, and pip and apt-get that reach their registries.
# `make PYTHON=python3.12 test` uses another interpreter.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/made-from
# What the virtual environment depends on: the requirements, the folder (its scripts name it) and the interpreter.
SOURCE  = $$(sha256sum < pyproject.toml) $(CURDIR) $$($(PYTHON) -c 'import sys; print(sys.base_prefix, sys.version)' | tr -d '\n')
# Debian has the part of Python that makes one in a package of its own; an ordinary user's gets pip from a wheel instead.
VENV_PACKAGE = $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')

.NOTPARALLEL:
.PHONY: help setup venv venv-made venv-support demo test mutants bench profile soak lint build clean

help:
	@echo 'make setup   virtual environment, system packages, guest kernel and programs; the second time it downloads nothing'
	@echo 'make demo    set-up, then a Linux guest whose disk driver is killed under it'
	@echo 'make test    set-up, then linters, types, import contracts and all tests (PYTEST_ARGS="-k ring")'
	@echo 'make mutants set-up, then the code broken in each way that matters, and a test seen red for it (MUTANTS="--fast")'
	@echo 'make bench   set-up, then every figure against its peer, into bench/RESULTS.md'
	@echo 'make profile set-up, then flame graphs of the block path and of a hypervisor with 200 domains, into build/profile'
	@echo 'make soak    set-up, then an hour of random kills under eight guests, and a thousand restarts (SOAK_ARGS="--minutes 5")'
	@echo 'make lint    linters, types and import contracts alone'
	@echo 'make build   sdist and wheel, into dist/'
	@echo 'make clean   remove the virtual environment, caches and builds; runs/ stays'

setup: venv
	@$(PY) -m triovisor.provision

demo: setup
	@$(PY) -m triovisor.demo

test: setup lint
	@$(PY) -m pytest $(PYTEST_ARGS)

mutants: setup
	@$(PY) -m tests.mutants $(MUTANTS)

bench: setup
	@$(PY) -m bench

profile: setup
	@$(PY) -m bench.profile

soak: setup
	@$(PY) -m tests.soak $(SOAK_ARGS)
	@$(PY) -m tests.soak.leaks

lint: venv
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo

build: venv
	@$(PY) -m build --no-isolation

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One set-up at a time makes it; another that waited finds it made.
venv:
	@flock --nonblock pyproject.toml true || echo 'setup: waiting for another one here'
	@flock pyproject.toml $(MAKE) --no-print-directory venv-made

venv-made:
	@[ "$$(cat $(STAMP) 2>/dev/null)" = "$(SOURCE)" ] && $(PY) -c '' 2>/dev/null || $(MAKE) --no-print-directory $(STAMP)

# Reached only through `venv`, which decides whether it is out of date.
.PHONY: $(STAMP)
$(STAMP): venv-support
	@echo 'setup: virtual environment in $(VENV)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $$($(PYTHON) -c 'import ensurepip' 2>/dev/null || echo --without-pip) $(VENV)
	@$(VENV)/bin/python -c 'import pip' 2>/dev/null || $(VENV)/bin/python -m triovisor.provision.pip
	@echo 'setup: Python packages'
	@$(VENV)/bin/pip install --disable-pip-version-check --progress-bar on --editable '.[dev]'
	@echo 'PATH="$$PATH:/usr/sbin:/sbin:$${TRIOVISOR_CACHE:-$$HOME/.cache/triovisor}/packages/current/bin"' >> $(VENV)/bin/activate
	@echo "$(SOURCE)" > $(STAMP)

venv-support:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'setup: $(PYTHON) is no Python 3.11 or later; name one: make PYTHON=python3.12 setup' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || [ "$$(id -u)" != 0 ] || { command -v apt-get > /dev/null && \
	    echo "setup: $(VENV_PACKAGE) through apt-get" && apt-get update && \
	    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(VENV_PACKAGE); } || \
	    { echo "setup: $(PYTHON) cannot make virtual environments; run: sudo apt-get install $(VENV_PACKAGE)" >&2; exit 1; }
