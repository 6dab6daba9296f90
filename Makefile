PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
# The libraries of models that the tests run; see docs/reference/versions.md.
HOSTS := lite,mmpretrain,detection,segmentation
BIN := .venv/bin
STAMP := .venv/.installed
# Toy networks keep one core busy: a process for each core, of one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
    --numprocesses logical --maxprocesses 4 --dist worksteal

.PHONY: venv demo test test-slow test-all lint docs clean

venv: $(STAMP)

$(STAMP): setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install 'setuptools>=77.0.3,<82' wheel
	$(BIN)/pip install -e '.[$(HOSTS),dev]'
	touch $@

demo: venv
	$(BIN)/python tools/ptq.py \
	    configs/brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py \
	    demo/resnet18_fashion-mnist.pth --work-dir work_dirs/demo

test: venv
	$(PYTEST)

test-slow: venv
	$(PYTEST) -m slow

test-all: venv
	$(PYTEST) -m 'slow or not slow'

lint: venv
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

# Offline; a warning is an error.
docs: venv
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo 'The site is in docs/_build/html/index.html'

# What was built and cached; .venv and what it links to (.mim) stay.
clean:
	rm -rf build dist *.egg-info work_dirs/demo docs/_build
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
