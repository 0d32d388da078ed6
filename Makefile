# make quickstart   train a three-agent team on this machine's CPU
# make test         the everyday test suite, lint and format included
# make test-slow    what takes longer
# make test-export  what transformers and peft make of exported teams; needs torch
# make check        lint and format only
# make docs         the documentation as a site, in site/
# make plan-env     .venv-plan: the same and libtpu, for launch/plan.py

PYTHON ?= python3
VENV ?= .venv
PLAN_VENV ?= .venv-plan
EXPORT_VENV ?= .venv-export
BIN := $(VENV)/bin
CACHE ?= $(HOME)/.cache/mappa_jax
WORKDIR ?= runs/quickstart
JOBS ?= 2

export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-slow test-export check docs plan-env clean

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

# JOBS processes, each test file in one of them.
test: $(VENV)/.installed check
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.installed check
	$(BIN)/python -m pytest -m slow

# torch, of the tests alone, stays out of the other environment too: transformers would
# import it in every process. This one borrows all that is not torch's from the other.
$(EXPORT_VENV)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(EXPORT_VENV)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  $$($(EXPORT_VENV)/bin/python -c \
	  'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth
	$(EXPORT_VENV)/bin/python -m pip install -q --disable-pip-version-check \
	  torch==2.13.0 peft==0.21.2
	@touch $@

test-export: $(EXPORT_VENV)/.installed
	PYTHONPATH=$(CURDIR) $(EXPORT_VENV)/bin/python -m pytest tests/test_export.py

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(PLAN_VENV) $(EXPORT_VENV) site .cache .pytest_cache .ruff_cache
