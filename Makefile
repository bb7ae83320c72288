# `make demo` and `make test` need nothing but Python ≥ 3.11 and make; everything is installed into .venv.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3 2>/dev/null))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-tables test-all lint docs clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Idle threads sleep instead of spinning: a decoding worker shares the cores.
demo: $(READY)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/accelerate launch --quiet --cpu --num_processes 1 --num_machines 1 \
		--mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 2 \
		recipes/imagenet_clars.py --config recipes/demo/fashion_mnist.yaml

# One process for each core, and one thread for each process.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# The slow tests of norms that are tables of functions, layers and models: none starts a process.
test-tables: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow \
		tests/test_norms_functions.py tests/test_norms_suite.py tests/test_norms_checkpointing.py \
		tests/test_optimizers_conduct.py

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ''

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages of docs/, into site/. A link that leads nowhere is an error (which --quiet would hide).
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) outputs wandb site .pytest_cache .mypy_cache .ruff_cache .hypothesis
