# Two commands: `make demo` and `make test`. Each sets up .venv first if needed; PYTHON chooses the interpreter.
PYTHON ?= $(firstword $(foreach name,python3.12 python3.11 python3,$(if $(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo yes),$(name))))
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes, each with whole files, so that what the tests of a file share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test lint parity slow docs notebooks study clean

demo: $(VENV)/run.stamp
	$(BIN)/python experiments/demo.py --out runs/demo

test: $(VENV)/dev.stamp
	$(PYTEST)

slow: $(VENV)/dev.stamp
	$(PYTEST) -m slow

parity: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -e ".[parity]"
	$(PYTEST) -m parity

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in build/docs; every warning is an error.
docs: $(VENV)/dev.stamp
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees docs build/docs

# The paper's tables and figures on the bundled model, with experiments/README.md; a stopped study is resumed.
study: $(VENV)/run.stamp
	$(BIN)/python -m experiments.all --scale demo

# Each notebook from its first cell to its last, in a copy, so that the outputs that lie in the repository stay.
notebooks: $(VENV)/dev.stamp
	rm -rf build/notebooks && mkdir -p build/notebooks && cp notebooks/*.ipynb build/notebooks
	$(BIN)/jupyter execute --kernel_name=python3 --timeout=600 build/notebooks/*.ipynb

clean:
	rm -rf $(VENV) runs build dist docs/api *.egg-info

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make demo PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
