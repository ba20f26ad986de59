# Two commands for a stranger: `make demo` and `make test`. Each needs nothing but Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.bench
FRAMEWORKS := $(VENV)/frameworks

# Modules are compiled once, and not for each of the many processes, whatever the machine says.
export PYTHONDONTWRITEBYTECODE :=
# Files of tests run side by side, each in one process: what its tests share is made once. They often wait, for a window or
# for a process that ends, so that two cores have work for three.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all integrations torture check dist matrix durations bench docs gallery clean

demo: $(INSTALLED)
	$(BIN)/tracer demo

# The promises, each at least once, in a few minutes.
test: $(INSTALLED)
	$(PYTEST) -m "not slow or smoke"

# Everything: faults, stores, ranks, the browser, windows and engines too.
test-all: $(INSTALLED)
	$(PYTEST)

# The tests of the frameworks, on two gigabytes of them.
integrations: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m pytest --numprocesses 3 --dist loadfile tests/integrations

# The tests on each release of PyTorch and Python and on the oldest libraries; all of it takes hours and 50 GB of downloads.
# What `make dist` built is installed and tested, and not the checkout.
# A part of it: make matrix SESSIONS="floors 'torch(2.13)'"; nox --list names all.
matrix: dist
	$(BIN)/python -m pip install --quiet --editable '.[matrix]'
	$(BIN)/nox $(if $(SESSIONS),--sessions $(SESSIONS))

# Wheel and sdist, as a release has them.
dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# How long each file of tests takes, into tests/durations.md.
durations: $(INSTALLED)
	$(PYTEST) --junitxml .durations.xml
	$(BIN)/python -m tests.durations .durations.xml

# The tests of faults, for much longer, and a table of what they did and saw.
torture: $(INSTALLED)
	GRADWATCH_TORTURE=10 $(BIN)/python -m pytest tests/faults tests/remote tests/distributed/test_nodes.py \
		tests/tracer/test_resume.py tests/tracer/test_interrupts.py tests/tracer/test_every.py \
		tests/viewer/rules/test_illnesses.py

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin -p tracer -p viewer
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 -p tracer -p viewer
	$(BIN)/lint-imports

bench: $(PEERS)
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.hotpath
	$(BIN)/python -m benchmarks.statistics
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.log
	$(BIN)/python -m benchmarks.scan
	$(BIN)/python -m benchmarks.viewer
	$(BIN)/python -m benchmarks.idle
	$(BIN)/python -m benchmarks.gpu

# The site, into docs/_site. A link that leads nowhere is an error.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_site

gallery: $(INSTALLED)
	$(BIN)/python -m tests.gallery docs/gallery
	$(BIN)/python -m tests.pages docs/gallery
	$(BIN)/python -m tests.film docs

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[demo,dev]'
	touch $@

# An environment that sees the packages of the other one, and changes none of them.
$(FRAMEWORKS)/.installed: $(INSTALLED)
	test -x $(FRAMEWORKS)/bin/python || $(PYTHON) -m venv $(FRAMEWORKS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(FRAMEWORKS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(FRAMEWORKS)/bin/python -m pip install --quiet --editable '.[integrations]'
	touch $@

$(PEERS): $(INSTALLED)
	$(BIN)/python -m pip install --editable '.[demo,dev,bench]'
	# It asks for an older polars than the rest is run with, and works with this one.
	$(BIN)/python -m pip install --no-deps 'torchinstruments>=0.10'
	touch $@

clean:
	rm -rf $(VENV) runs dist docs/_made docs/_site .mypy_cache .ruff_cache .pytest_cache .hypothesis
