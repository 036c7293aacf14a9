# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-slow lint check docs train-tiny clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## edit examples/bunny.mp4 with the model in the package, on the CPU
	$(BIN)/kiwi edit examples/bunny.mp4 "turn it into a night scene" --model tiny \
	  --device cpu --overwrite -o demo.mp4
	@echo "The result is at $(CURDIR)/demo.mp4"

test: $(VENV)/.installed  ## the fast tests
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-slow: $(VENV)/.installed  ## the tests that take minutes each, those of Ray among them; 20 GB of disk
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test test-slow

train-tiny: $(VENV)/.installed  ## train the embedded model from nothing: about three hours on two cores
	$(BIN)/python scripts/train_tiny.py

docs: $(VENV)/.installed  ## docs/cli.md, from the app
	$(BIN)/python scripts/cli_reference.py

clean:
	rm -rf $(VENV) demo.mp4 build src/*.egg-info
