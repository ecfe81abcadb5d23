# Each target sets up its own virtual environment in .venv first; PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# A file's tests stay in one process, which shares their fixtures; the files that take longest start first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The commands that tests start import a lot: read from bytecode, they start in half the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo lint format docs test test-slow test-all all-tests durations clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(READY)  ## train and evaluate on the small world: a table of scores and a page of captions
	$(BIN)/python train.py
	$(BIN)/python eval.py ckpt=$$(ls -t runs/demo-transformer/*/checkpoints/best.ckpt | head -n 1)

lint: $(READY)  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)  ## build the documentation in site/
	$(BIN)/mkdocs build --strict

test: lint  ## lint, then the fast tests: every capability at least once
	$(PYTEST) -m "not slow"

test-slow: $(READY)  ## the remaining tests
	$(PYTEST) -m slow

test-all: $(READY)  ## lint and all tests, which takes less time than the fast and then the slow: they share fixtures
	$(MAKE) --jobs 2 lint all-tests

all-tests: $(READY)
	$(PYTEST)

durations: $(READY)  ## run all tests, and keep in tests/durations.json how long each takes
	$(PYTEST) --keep-durations

clean:  ## remove the environment, caches and what the demo wrote
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build dist site data/demo stores/demo-demo

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --constraints constraints.txt --editable ".[dev]"
	touch $(READY)
