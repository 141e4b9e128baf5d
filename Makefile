# The environment is .venv at the root; `make setup` makes it and does nothing when nothing has changed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup test coverage demo lint docs requirements clean

BIN := .venv/bin
export WORKERS ?= 2
STAMP := .venv/.sightline-is-set-up
export TOKENIZERS_PARALLELISM := false

help:  ## Show the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

setup: $(STAMP)  ## Make .venv from requirements.txt, by hash

$(STAMP): requirements.txt pyproject.toml infra/setup.sh
	bash infra/setup.sh
	touch $(STAMP)

test: setup  ## Run every test, two files at a time; TESTS=tests/index for a part, WORKERS=1 for one at a time
	infra/test.sh $(TESTS)

coverage: setup  ## Measure which lines the tests of the packages run (system tests start processes and do not count)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not system and not alone" \
		--cov --cov-report term:skip-covered --cov-report html

demo: setup  ## Render two cameras, ingest them, ask, write demo-out/report.html
	$(BIN)/sightline demo --out demo-out

lint: setup  ## ruff, mypy --strict, the layers, the structure of the tree, and the types of the desk's page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-cache
	$(BIN)/python infra/lint/structure.py
	infra/web/check.sh

docs: setup  ## Build the documentation into site/, without warnings
	$(BIN)/mkdocs build --strict --quiet

requirements:  ## Write requirements.txt anew from pyproject.toml: all extras but gpu and vllm
	$$(bash infra/setup.sh --uv) pip compile --quiet --python-version 3.11 --extra all --extra dev --extra docs --extra scoring \
		--generate-hashes --no-emit-index-url --no-annotate --no-header -o requirements.txt pyproject.toml

clean:  ## Remove what the demo and the tests leave behind (not .venv)
	rm -rf demo-out site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov build dist *.egg-info
