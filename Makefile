# What a developer does with this repository. `make` alone lists the targets; each says what it does and how long it takes.
# With KUBECONFIG set, demo and mesh use that cluster and start none of their own.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

export MESH_CACHE ?= $(HOME)/.cache/istio-egress-mesh
export ANSIBLE_LOCALHOST_WARNING := false
export ANSIBLE_INVENTORY_UNPARSED_WARNING := false
export PATH := $(MESH_CACHE)/venv/bin:$(PATH)

LANES ?= 3
USER_CLUSTER := $(KUBECONFIG)
MESH := tests/cluster/mesh
unchanged = python tests/tooling/unchanged.py
in_tree = export ANSIBLE_COLLECTIONS_PATH="$$(python tests/tooling/tree.py)";
whole_mesh = tests/mesh/test_whole_mesh.py
mesh_tests = pytest -o cache_dir=tests/output/pytest tests/mesh --ignore tests/mesh/test_examples.py --ignore $(whole_mesh)
on_mesh = $(in_tree) $(if $(USER_CLUSTER),,export KUBECONFIG="$$($(MESH) kubeconfig)";)

.PHONY: help setup demo test lint unit sanity api mesh mesh-up examples cluster molecule docs artifact release proof matrix bench bench-hosts bench-gateways clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

setup: ## development venv with all tools, in the cache directory (first time about 1 min, then at once)
	@tests/tooling/setup

demo: setup mesh-up ## one mesh, three playbooks, one table of real requests, and their picture below tests/output
	@echo "demo: playbook meshops.istio_egress.demo against $(or $(USER_CLUSTER),the mesh of this machine)"
	@mkdir -p tests/output
	@$(on_mesh) ansible-playbook meshops.istio_egress.demo -e egress_svg=$(CURDIR)/tests/output/demo.svg
	@echo "demo: the requests after the entries, drawn: tests/output/demo.svg"

test: setup ## mesh, beside it lint, unit, docs, artifact, sanity, cluster and api (12 to 15 min with the mesh built). Begins nothing after a failure
	@python tests/tooling/stages.py mesh lint,unit,docs,artifact,sanity,$(if $(USER_CLUSTER),,cluster,)api

lint: setup ## ruff, yamllint, shellcheck, changelog, docs, ansible-lint (about 1 min, at once when nothing has changed)
	@$(in_tree) $(unchanged) lint -- tests/tooling/lint

unit: setup ## tests that need no cluster
	@echo "unit: pytest tests/unit"
	@pytest --numprocesses 2 tests/unit

sanity: setup ## every test of ansible-test sanity (first time about 2 min, then 1, at once when nothing has changed)
	@$(unchanged) sanity -- python tests/tooling/sanity.py

api: setup ## tests against a real API server, without proxies (about 2 min)
	@echo "api: API server alone, then pytest tests/api"
	@$(MESH) up --api-only --name api
	@KUBECONFIG="$$($(MESH) kubeconfig --name api)" pytest tests/api

# First what changes the whole mesh. Then three tests at a time, which keeps two cores busy; what fails beside others is asked once more with the mesh to
# itself, and only that answer counts.
mesh: setup mesh-up ## tests against real proxies (about 11 min; LANES=0 for one at a time, about 25)
	@echo "mesh: pytest tests/mesh against $(or $(USER_CLUSTER),the mesh of this machine)"
	@$(on_mesh) pytest $(whole_mesh); $(mesh_tests) --numprocesses $(LANES) --dist loadscope --no-loadscope-reorder --durations 12 || \
		{ test $$? = 1; echo "mesh: once more, alone, what failed beside others"; $(mesh_tests) --last-failed --last-failed-no-failures none; }

examples: setup mesh-up ## every example of modules and pages, as it is written (about 5 min)
	@$(on_mesh) pytest tests/mesh/test_examples.py

cluster: setup ## tests of the one-machine mesh itself, as root (about 3 min, at once when it is as it was when they passed)
	@$(unchanged) cluster --reads tests/cluster -- $(SHELL) -ec '$(MESH) build; pytest tests/cluster'

mesh-up:
ifeq ($(USER_CLUSTER),)
	@$(MESH) up --istio
endif

molecule: setup mesh-up ## one scenario per role against real proxies (about 5 min; make molecule MOLECULE="test -s egress_host" for one)
	@$(on_mesh) molecule $(or $(MOLECULE),test --all)

docs: setup ## the site of the documentation, below tests/output (about 15 s)
	@$(in_tree) python tests/tooling/docs.py

artifact: setup ## what a user gets: built, looked into, judged by galaxy-importer (first time about 1 min, then 25 s); its ansible-lint is left to make release
	@python tests/tooling/artifact.py

release: setup mesh-up ## the artifact, installed into an empty venv, demo run from there (about 3 min; RELEASE=--every for all playbooks, twice, and cleanup: 15 min)
	@$(on_mesh) python tests/tooling/release.py $(RELEASE)

proof: setup mesh-up ## what explain says beside what requests do, under 300 random configurations (about 15 min)
	@$(on_mesh) python tests/proof/prove.py $(PROOF)

matrix: setup ## unit tests and sanity on each supported Python, kubernetes client and ansible-core found here (about 20 min)
	@python tests/tooling/matrix.py

bench: bench-hosts bench-gateways ## what docs/performance.md shows (about 40 min)

bench-hosts: setup ## 500 hosts beside kubernetes.core and kubectl, in one run (about 5 min; BENCH="--host-count 5000" for more)
	@$(MESH) up --api-only --name bench
	@KUBECONFIG="$$($(MESH) kubeconfig --name bench)" python tests/bench/run.py $(BENCH)

bench-gateways: setup mesh-up ## 50,000 requests while hosts move between gateways, and what 200 hosts cost proxies (about 35 min)
	@$(on_mesh) EGRESS_LOAD_REQUESTS=50000 EGRESS_SIZES_HOSTS=200 pytest tests/mesh/test_gateway_no_lost_request.py tests/mesh/test_sizes.py

clean: ## stop the meshes of this machine; what was built stays in the cache
	@$(MESH) down
	@$(MESH) down --name api
	@$(MESH) down --name bench
