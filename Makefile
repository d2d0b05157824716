# Set-up and checks. `make test` and every other target make the virtual environment they need.
PYTHON ?= python3
VENV ?= .venv
VERIFY_VENV ?= .venv-verify
PY = $(VENV)/bin/python

.PHONY: help dev test check docs bench golden verify clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ -/'

dev: $(VENV)/.ready  ## virtual environment with everything the checks need
	@echo "ready: . $(VENV)/bin/activate"

# The link makes type checkers follow imports of roofplan into this checkout.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "roofplan needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check "setuptools>=77"
	$(PY) -m pip install -q --disable-pip-version-check -e '.[test]'
	$(PY) -c "import pathlib, sysconfig; p = pathlib.Path(sysconfig.get_path('purelib'), 'roofplan'); p.unlink(missing_ok=True); p.symlink_to('$(CURDIR)')"
	touch $@

test: $(VENV)/.ready  ## the test suite
	$(PY) -m pytest

check: $(VENV)/.ready  ## lint and types
	$(PY) -m ruff check .
	cd $(VENV) && bin/python -m mypy --config-file $(CURDIR)/pyproject.toml $(foreach f,scenarios costmodels sim planner calibrate kernels,-p roofplan.$(f)) -m roofplan.cli

docs: $(VENV)/.ready  ## links, commands and notebooks of the documentation
	$(PY) -m pytest -k "docs or readme or notebook or markdown"

bench: $(VENV)/.ready  ## speed on this machine
	$(PY) -m pytest -m bench -s

golden: $(VENV)/.ready  ## rewrite the recorded outputs; read the diff before you commit it
	ROOFPLAN_GOLDEN=write $(PY) -m pytest -k "recorded or golden"
	git diff --stat -- tests/golden

verify: $(VERIFY_VENV)/.ready  ## emitted files read and run on CPU by the real torch, DeepSpeed, vLLM, SGLang; Triton kernels in its interpreter
	$(VERIFY_VENV)/bin/python -m pytest tests/verify tests/test_kernels_*.py

$(VERIFY_VENV)/.ready: pyproject.toml tests/verify/install.sh
	PYTHON=$(PYTHON) bash tests/verify/install.sh $(VERIFY_VENV)
	touch $@

clean:  ## virtual environments, caches, builds
	rm -rf $(VENV) $(VERIFY_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
