# make quickstart   train a three-agent team on this machine's CPU
# make test         the everyday test suite, lint and format included
# make test-slow    what takes longer
# make check        lint and format only
# make docs         the documentation as a site, in site/
# make plan-env     .venv-plan: the same and libtpu, for launch/plan.py

PYTHON ?= python3
VENV ?= .venv
PLAN_VENV ?= .venv-plan
BIN := $(VENV)/bin
CACHE ?= $(HOME)/.cache/mappa_jax
WORKDIR ?= runs/quickstart

export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-slow check docs plan-env clean

# Remade when the requirements change.
$(VENV)/.installed: requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; set PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# libtpu stays out of the other environment: where it is installed, JAX looks for a TPU.
plan-env: $(PLAN_VENV)/.installed

$(PLAN_VENV)/.installed: requirements.txt setup.py
	$(PYTHON) -m venv $(PLAN_VENV)
	$(PLAN_VENV)/bin/python -m pip install -q --disable-pip-version-check \
	  -r requirements.txt
	$(PLAN_VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[plan]'
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/python launch/weights.py smollm2-135m-instruct --cache_dir=$(CACHE)
	$(BIN)/python launch/train.py --config=configs/quickstart.py \
	  --workdir=$(WORKDIR) --cache_dir=$(CACHE)

test: $(VENV)/.installed check
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed check
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(PLAN_VENV) site .cache .pytest_cache .ruff_cache
