# Everything a person types. `make help` lists it; each target is a script that can be read on its own.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python

.PHONY: help setup demo down test test-long test-vllm check gen bench

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: .venv/.synced ## the Python environment, from the hash-locked requirements

.venv/.synced: requirements.lock pyproject.toml .ci/setup
	bash .ci/setup

demo: setup ## from nothing to a trained model that answers, on two real nodes; leaves the cluster up
	$(PYTHON) -m localcluster up
	$(PYTHON) -m localcluster images
	$(PYTHON) -m localcluster install
	$(PYTHON) -m examples.demo

down: ## stop the cluster; objects, volumes and images stay for the next `make demo`
	python3 -m localcluster down

check: setup ## lint, types, layers, generated files and unit tests, in under a minute
	bash .ci/check

test: setup ## everything CI runs: check, then cluster and end-to-end tests on two real nodes
	bash .ci/test

test-long: setup ## what is too long for CI
	bash .ci/test long

test-vllm: setup ## real vLLM as the engine of a deployment, on two real nodes; builds its image first (2 GB, minutes)
	$(PYTHON) -m localcluster up
	$(PYTHON) -m localcluster images --vllm
	$(PYTHON) -m localcluster install
	$(PYTHON) -m pytest -v tests/vllm

gen: setup ## rewrite crds/, the chart's copies and docs/reference from the pydantic models
	bash .ci/gen

bench: setup ## measure: make bench NAME=accuracy|greedy|demo|engine|trainer [PART=...] [LONG=1]
	$(PYTHON) -m bench.$(NAME)
