# make demo: the small world, from nothing to a table of scores and a page of captions.    make test: all tests.
# Each sets up its own virtual environment in .venv first; PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test clean

demo: $(READY)
	$(BIN)/python train.py
	$(BIN)/python eval.py ckpt=$$(ls -t runs/demo-transformer/*/checkpoints/best.ckpt | head -n 1)

test: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --constraints constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf .venv data/demo stores/demo-demo
