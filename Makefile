# make demo · make test · make lint · make bench: each creates .venv when it is missing.
PYTHON ?= python3.11
PY := .venv/bin/python
DEPS := requirements.txt constraints.txt pyproject.toml

.PHONY: demo test slow-test lint bench docs clean

.venv/.installed: $(DEPS)
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt -c constraints.txt
	$(PY) -m pip install --disable-pip-version-check -q -e '.[dev]' -c constraints.txt
	touch $@

demo: .venv/.installed
	$(PY) -m ebr sample
	$(PY) -m ebr.notebook EBR_workflow.ipynb

test: .venv/.installed
	$(PY) -m pytest -m 'not slow'

slow-test: .venv/.installed
	$(PY) -m pytest -m slow

lint: .venv/.installed
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: .venv/.installed
	$(PY) -m ebr.config.tables README.md README.zh-CN.md

bench: .venv/.installed
	$(PY) benchmarks/control.py

clean:
	rm -rf .venv build *.egg-info
