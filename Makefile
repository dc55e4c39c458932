# Verbs only; what they do is in the scripts they call. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON := .venv/bin/python
CLUSTER := tests/cluster/cluster.sh
DEMO := PYTHONPATH=tests $(PYTHON) -m demo
JUNIT = --junitxml=build/junit/$@.xml
CHECKED := operator trainer_image tests

.PHONY: help bootstrap tools cluster-up cluster-down kubeconfig demo demo-down guide lint fmt types \
	imports generate verify unit contract integration e2e test bench-loop bench-start bench-apply \
	bench-scale images constraints

help: ## List the verbs
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

bootstrap: ## Create .venv with the pinned packages (and uv, if there is none)
	@tests/tools.sh

tools: bootstrap ## Install and build what the test cluster consists of (once)
	@$(CLUSTER) tools

cluster-up: tools ## Cluster, operator, and namespace ktrdr-demo with data and strategies
	@$(DEMO) cluster-up

cluster-down: bootstrap ## Remove the cluster (one named by KTRDR_KUBECONFIG: what we put on it)
	@$(DEMO) cluster-down

kubeconfig: ## Print the path of the cluster's kubeconfig
	@$(CLUSTER) kubeconfig

demo: tools ## Train, cancel and delete on a real cluster, and show it
	@$(DEMO) demo

demo-down: cluster-down ## Remove every trace of the demo

guide: bootstrap ## Refresh the outputs in docs/guides/first-job.md from a real run
	@PYTHONPATH=tests $(PYTHON) -m demo.refresh_guide

lint: bootstrap ## Check style
	@.venv/bin/ruff check $(CHECKED)
	@.venv/bin/ruff format --check $(CHECKED)

fmt: bootstrap ## Format, and fix what can be fixed
	@.venv/bin/ruff check --fix $(CHECKED)
	@.venv/bin/ruff format $(CHECKED)

types: bootstrap ## Check types
	@.venv/bin/mypy -p ktrdr_api -p ktrdr_client -p ktrdr_operator -p ktrdr_trainer
	@.venv/bin/mypy tests

imports: bootstrap ## Check who imports whom
	@.venv/bin/lint-imports

generate: bootstrap ## Regenerate what is generated from the models: CRD, reference page
	@$(PYTHON) -m ktrdr_api.crd
	@$(PYTHON) -m ktrdr_api.reference

verify: bootstrap ## Fail if anything generated differs from what the models say
	@$(PYTHON) -m ktrdr_api.crd --check
	@$(PYTHON) -m ktrdr_api.reference --check

unit: bootstrap ## Fast tests: no cluster, no network
	@$(PYTHON) -m pytest tests/unit $(JUNIT)

contract: bootstrap ## What we rely on in a real API server
	@KTRDR_TEST_KUBECONFIG=$$($(CLUSTER) kubeconfig) $(PYTHON) -m pytest tests/contract $(JUNIT)

integration: bootstrap ## Operator or trainer against a real API server
	@KTRDR_TEST_KUBECONFIG=$$($(CLUSTER) kubeconfig) $(PYTHON) -m pytest tests/integration $(JUNIT)

e2e: bootstrap ## The whole product on the cluster: chart, operator, trainers
	@KTRDR_TEST_KUBECONFIG=$$($(CLUSTER) kubeconfig) $(PYTHON) -m pytest tests/e2e --timeout=600 $(JUNIT)

test: ## Everything, in order, with wall times; brings a cluster up if there is none
	@tests/all.sh

bench-loop: bootstrap ## Trainer loop against a DataLoader loop; fails below its bars
	@PYTHONPATH=tests $(PYTHON) tests/bench/bench_loop.py

bench-start: bootstrap ## Start of the trainer to its first step against a bare import of torch
	@PYTHONPATH=tests $(PYTHON) tests/bench/bench_start.py

bench-apply: cluster-up ## 500 TrainingJobs beside 500 bare pods and 500 batch/v1 Jobs: time, CPU, writes
	@KTRDR_TEST_KUBECONFIG=$$($(CLUSTER) kubeconfig) PYTHONPATH=tests \
		$(PYTHON) tests/bench/bench_apply.py

bench-scale: tools ## Operator with 2,500 and 10,000 TrainingJobs: start, memory, resync, reports
	@PYTHONPATH=tests $(PYTHON) tests/bench/bench_scale.py

images: bootstrap ## Build the operator's and the trainer's image (docker, else buildah)
	@tests/cluster/images.sh operator build/images/operator.tar
	@tests/cluster/images.sh trainer build/images/trainer.tar

constraints: bootstrap ## Pin every package anew, with hashes, into .ci/constraints.txt
	@PATH=$$PATH:.tools/uv/bin; printf -- '-e .\nhatchling>=1.28\neditables\n' | uv pip compile pyproject.toml - --quiet --upgrade \
		--all-extras --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-emit-package ktrdr \
		--custom-compile-command 'make constraints' --output-file .ci/constraints.txt
	@! grep -nE '://|^-' .ci/constraints.txt
