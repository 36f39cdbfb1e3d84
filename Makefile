# `make demo` and `make test` include the setup.
SHELL := bash
PYTHON ?= python3
ANSWERS ?=
SKELETON := {{cookiecutter.project_slug}}
BIN := $(CURDIR)/.venv/bin
DEMO := build/demo/my-ml-project
VENDOR := $(CURDIR)/$(SKELETON)/vendor
PARALLEL ?= -n 4 --dist worksteal# twice the cores of CI, as tests of services and agents wait half of the time
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
export UV_COMPILE_BYTECODE := 1
# Caches are kept out of the skeleton, as its files are copied to projects.
export PYTHONDONTWRITEBYTECODE := 1
export RUFF_CACHE_DIR := $(CURDIR)/build/ruff
export MYPY_CACHE_DIR := $(CURDIR)/build/mypy

.PHONY: help setup demo demo-online test test-fast test-template test-engines engines lint wheel bake bench size browser clean

help: ## list all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 15

setup: build/.ready ## create the environment (installs uv if missing)

build/.ready: pyproject.toml $(SKELETON)/pyproject.toml
	@mkdir -p build
	@command -v uv >/dev/null || test -x build/tools/bin/uv || \
	    { $(PYTHON) -m venv build/tools && build/tools/bin/pip install --quiet uv; }
	@uv=$$(command -v uv || echo build/tools/bin/uv); \
	    test -x .venv/bin/python || $$uv venv --quiet --python $(PYTHON) .venv; \
	    $$uv pip install --quiet --python .venv/bin/python --group dev --editable . && \
	    .venv/bin/cookiecutter . --no-input --overwrite-if-exists --output-dir build/demo check_credentials=skip >/dev/null && \
	    $$uv pip install --quiet --python .venv/bin/python --no-sources --group $(DEMO)/pyproject.toml:dev --editable . --editable $(DEMO)
	@.venv/bin/python -m compileall -q src
	@touch $@

demo: setup ## generate the default project and run its demo, without accounts
	@.venv/bin/cookiecutter . --no-input --overwrite-if-exists --output-dir build/demo check_credentials=skip
	@cd $(DEMO) && "$(BIN)/python" -m my_ml_project demo

demo-online: setup ## run the demo with the real clients and all services on loopback
	@"$(BIN)/python" tests/services/online.py build/demo-online

test: setup browser ## run all tests (11 to 40 minutes)
	@"$(BIN)/python" -m pytest $(PARALLEL)

test-fast: setup browser ## run the tests not marked slow (2 to 6 minutes)
	@"$(BIN)/python" -m pytest $(PARALLEL) -m "not slow and not engines"

test-template: setup ## run the tests of the template (2 to 6 minutes)
	@"$(BIN)/python" -m pytest $(PARALLEL) tests/template

test-engines: setup engines ## run the tests with real engines and clients (root, Debian or Ubuntu; 5 minutes)
	@"$(BIN)/python" -m pytest -m engines

# A test fails with the name of the package where an engine is missing.
engines: build/engines/sky build/engines/clients build/engines/mlserver
	@dpkg -s slurm-wlm munge postgresql >/dev/null 2>&1 || \
	    { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends slurm-wlm munge postgresql >/dev/null; } || \
	    echo "Slurm or PostgreSQL is missing: run \`apt-get install slurm-wlm munge postgresql\` as root" >&2

# Heavy clients have environments of their own, made once; MLServer has no release for Python 3.13.
build/engines/sky: PACKAGES = skypilot==0.14.1
build/engines/clients: PACKAGES = 'tritonclient[http,grpc]==2.73.0' kserve==0.21.0 'kubernetes<32'
build/engines/mlserver: PACKAGES = mlserver==1.7.1 onnxruntime
build/engines/%:
	@uv=$$(command -v uv || echo build/tools/bin/uv); rm -rf $@.new && \
	    $$uv venv --quiet --relocatable --python '>=3.11,<3.13' $@.new && \
	    $$uv pip install --quiet --python $@.new/bin/python $(PACKAGES) && mv $@.new $@

browser: build/axe-core # pages are tested in Chromium with the rules of axe-core
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	    { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	    echo "Chromium not found; install it to run the tests of web pages" >&2

build/axe-core:
	@rm -rf $@.new && mkdir -p $@.new && cd $@.new && npm pack --silent axe-core@4.14.1 >/dev/null && \
	    tar -xzf axe-core-*.tgz --strip-components 1 && mv $(CURDIR)/$@.new $(CURDIR)/$@ || \
	    echo "axe-core not found; install npm to run the tests of web pages" >&2

lint: setup ## check style, types, layers and dependencies of the repository and the skeleton
	@"$(BIN)/ruff" check . && "$(BIN)/ruff" format --check .
	@"$(BIN)/lint-imports" --no-cache
	@"$(BIN)/deptry" src
	@"$(BIN)/mypy" -p free_ml_stack
	@"$(BIN)/python" -c "import sys; sys.path.insert(0, 'tests'); import places"
	@MYPYPATH=build/src "$(BIN)/mypy" $$(cd build/src && printf -- '-p %s ' skeleton*)

wheel: setup ## build the library's wheel in the skeleton's vendor/ (after every change of src/)
	@rm -f "$(VENDOR)"/*.whl
	@"$(BIN)/python" -m hatchling build --target wheel --directory "$(VENDOR)"
	@cd "$(VENDOR)" && $$(command -v sha256sum || echo shasum -a 256) *.whl >SHA256SUMS

bake: setup ## generate a project in build/bake: make bake ANSWERS='storage=s3 license=MIT'
	@.venv/bin/cookiecutter . --no-input --overwrite-if-exists --output-dir build/bake check_credentials=skip $(ANSWERS)

bench: setup ## run the benchmarks of all figures in the README
	@failed=; for file in bench/*.py; do echo "== $$file"; \
	    PATH="$$PATH:$(CURDIR)/build/tools/bin" "$(BIN)/python" $$file || failed="$$failed $$file"; done; \
	    test -z "$$failed" || { echo "failed benchmarks:$$failed"; exit 1; }

size: ## count lines of a project, of the library by package, and of the tests
	@sum() { awk '{ print; total += $$1 } END { printf "%7d  total\n\n", total }'; }; \
	lines() { printf '%7d  %s\n' "$$(find "$$1" $$3 \( -name '*.py' -o -name "*.{{ 'py' }}" \) -exec cat {} + | wc -l)" "$$2"; }; \
	echo "Python of a generated project"; \
	for folder in "$(SKELETON)"/*/; do lines "$$folder" "$$(basename "$$folder")"; done | grep -v '^ *0 ' | sum; \
	echo "Science files of each task"; \
	for folder in templates/tasks/*/; do lines "$$folder" "$$(basename "$$folder")"; done; echo; \
	echo "Library by package"; \
	{ lines src/free_ml_stack "(top)" "-maxdepth 1"; \
	for folder in src/free_ml_stack/[a-z]*/; do lines "$$folder" "$$(basename "$$folder")"; done; } | sum; \
	echo "Tests"; \
	for folder in tests/[a-z]*/; do lines "$$folder" "$$(basename "$$folder")"; done | \
	{ cat; lines tests "(top)" "-maxdepth 1"; } | sum

clean: ## remove the environment and all generated files
	@rm -rf build .venv
