# Every command works on a fresh clone with nothing but Python and make: `setup` builds .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint docs bench clean
setup: .venv/.ready

.venv/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/innervision demo

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -c docs -d build/docs . site
	@echo site/index.html

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build site
