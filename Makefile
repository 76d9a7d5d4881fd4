PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test prove prove-peers fuzz mutants test-processes test-browser test-tensorflow docs dist site site-serve bench bench-check bench-processes bench-stores bench-scale lint types format clean

# Each target sets up what it needs, once, and again when the list of what is needed changes.
demo: $(VENV)/.installed
	$(BIN)/python examples/linear_regression.py
	$(BIN)/python -m pytreesaver demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

# Faults at every point, for hours: docs/reliability.md has the table that this writes, and says what it needs.
# `make prove NAMES="kills power-cuts-on-ext4" STEP=10` tries a part of it, every tenth point.
NAMES ?=
STEP ?= 1
prove: $(VENV)/.installed-dev
	$(if $(NAMES),,PYTREESAVER_LONG_TESTS=1 $(BIN)/python -m pytest -n auto --dist worksteal tests/savers/test_state_machine.py tests/savers/test_incremental_state_machine.py tests/savers/test_injected_errors.py)
	$(BIN)/python -m tests.prove --step $(STEP) $(NAMES)

# The same faults for other libraries.
prove-peers: $(VENV)/.installed-dev
	$(BIN)/python -m tests.prove peers

# Seconds for each target: an hour in all. `make fuzz TARGETS=index SECONDS=60` fuzzes one; tests/fuzz/by_name.py has them all.
TARGETS ?= all
SECONDS ?= 210
fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python -m tests.fuzz $(TARGETS) --seconds $(SECONDS)

# An hour of mutations of the modules that write and check bytes. The survivors are printed, and are in mutants.jsonl.
MUTATING_SECONDS ?= 3600
mutants: $(VENV)/.installed-mutation
	$(BIN)/python -m tests.prove.mutation --seconds $(MUTATING_SECONDS)

# Four processes in place of two, and a fault at every message and every operation of the file system: half an hour.
test-processes: $(VENV)/.installed-dev
	PYTREESAVER_LONG_TESTS=1 $(BIN)/python -m pytest -rP tests/processes/test_faults_together.py tests/processes/test_real_kills.py

# Needs Chromium and its driver: apt-get install chromium chromium-driver
test-browser: $(VENV)/.installed-browser
	$(BIN)/python -m pytest -m browser tests/inspect/report/test_report_in_browser.py

# Needs TensorFlow, which it installs in an environment of its own.
test-tensorflow: $(VENV)-tensorflow/.installed
	$(VENV)-tensorflow/bin/python -m pytest -m tensorflow tests/formats/test_with_tensorflow.py

# The pictures and the generated page of the documentation; the pictures need Chromium too.
docs: $(VENV)/.installed-browser
	$(BIN)/python docs/make_cli_page.py
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/drawings.py

# The documentation site, in build/site: open build/site/index.html, no server is needed.
site: $(VENV)/.installed-site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The site on http://127.0.0.1:8000, built again after each change.
site-serve: $(VENV)/.installed-site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# What is released: the wheel and the sdist, checked, and the wheel tried in an environment that has nothing else.
dist: build/release/.installed
	rm -rf dist
	build/release/bin/python -m build
	build/release/bin/python -m twine check --strict dist/*
	build/release/bin/python -m tests.release.check_dist dist build/bare
	build/release/bin/cyclonedx-py environment --output-reproducible --output-file build/sbom.cdx.json build/bare/bin/python

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

bench-check: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.check

bench-processes: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.processes

bench-stores: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.stores

bench-scale: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.scale

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-tensorflow build dist checkpoint digits

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)-tensorflow/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-tensorflow
	$(VENV)-tensorflow/bin/python -m pip install --quiet --editable '.[test]' 'tensorflow-cpu>=2.20'
	touch $@

build/release/.installed: Makefile
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet 'build>=1.3' 'cyclonedx-bom>=7' 'packaging>=25' 'twine>=6.1'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(INSTALL) '.[bench]'
	touch $@

$(VENV)/.installed-browser: $(VENV)/.installed
	$(INSTALL) '.[browser]'
	touch $@

$(VENV)/.installed-site: $(VENV)/.installed
	$(INSTALL) '.[site]'
	touch $@

$(VENV)/.installed-mutation: $(VENV)/.installed
	$(INSTALL) '.[mutation]'
	touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed
	$(INSTALL) '.[fuzz]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) '.[dev]'
	touch $@
