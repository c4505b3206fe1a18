# `make demo` and `make test` need Python 3.11 or 3.12 and nothing else: each makes .venv and installs what it needs.
#
#   PYTHON=      the Python to make .venv with; by default the first of python3.11, python3.12, python3 that fits
#   RUNTIME=     cpu (ONNX Runtime for CPUs) or gpu (its CUDA build); an environment holds exactly one of them
#   TORCH_INDEX= an extra package index to take torch from, for machines without a GPU: torch's own index of CPU builds
#                saves several gigabytes; empty by default
#   OUT=         where `make demo` writes
#   JOBS=        how many tests run at once; by default one more than there are cores, at most four: many wait for servers

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?=
RUNTIME ?= cpu
TORCH_INDEX ?=
OUT ?= demo-output
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n + 1 : 4)))

# Each build of ONNX Runtime: the extra that brings it, and the package of the other build.
EXTRA.cpu := serve
EXTRA.gpu := gpu
OTHER.cpu := onnxruntime-gpu
OTHER.gpu := onnxruntime
EXTRA := $(EXTRA.$(RUNTIME))
ifeq ($(EXTRA),)
$(error RUNTIME=$(RUNTIME) is unknown: use RUNTIME=cpu or RUNTIME=gpu)
endif

# Two stamps, so that the demo does not wait for the test tools and the tests do not install the rest twice.
USE := .venv/.installed-$(RUNTIME)
DEV := .venv/.installed-$(RUNTIME)-dev
INPUTS := pyproject.toml constraints.txt

.PHONY: help demo test test-all check page docs audit install clean

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	    || sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1  \2/p' Makefile
	@sed -n '3,9s/^#/ /p' Makefile

demo: $(USE) ## make scans, train on 4 of them, export, serve, segment (a few minutes on 2 cores)
	.venv/bin/semiseg demo --out '$(OUT)'

# One thread a test process: they already share the cores among them. Files in their order: xdist would put those of few
# tests last, which are the slow ones.
test: $(DEV) ## run the tests; those on real data need SEMISEG_DATA, some need programs of tests/README.md
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=15 $(ARGS)

test-all: ARGS += -m "long or not long" --hypothesis-profile=new
test-all: test ## the same with those that take minutes (a crowd, hostile uploads, a server killed again and again) and new random examples

check: $(DEV) ## lint, formatting, types, the contracts between the rooms, documents that are made from the code
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
	.venv/bin/lint-imports
	.venv/bin/python -m docs.generators --check

page: server/http/page/niivue.js ## bring the viewer of the server's page (needs npm); without it the page shows pictures

# Only what the browser loads is kept, and one line that says what it is: the package is one file without a licence text.
server/http/page/niivue.js: server/http/page/package-lock.json
	rm -rf build/page && mkdir -p build/page
	cp server/http/page/package.json server/http/page/package-lock.json build/page/
	cd build/page && npm ci --silent --ignore-scripts --omit=optional
	{ echo "/*! NiiVue, BSD-2-Clause, https://github.com/niivue/niivue, from npm by package-lock.json */"; \
	    grep -v "^//# sourceMappingURL" build/page/node_modules/@niivue/niivue/dist/index.js; } > $@.unfinished
	mv $@.unfinished $@
	rm -rf build/page

docs: $(DEV) ## write the documents that are made from the code anew, and all as pages into build/docs
	.venv/bin/python -m docs.generators
	.venv/bin/python -m sphinx -q -W --keep-going -c docs . build/docs
	@echo "build/docs/docs/index.html"

# In an environment of its own, so that no environment of ours has to hold it. --strict: a package that cannot be looked up is
# a failure and not a silence.
audit: $(DEV) ## ask PyPI's advisories about what the images are made of (needs the internet)
	.venv/bin/python -m venv build/audit
	build/audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit==2.10.1
	for lock in deploy/*.lock; do build/audit/bin/pip-audit --strict --disable-pip --require-hashes -r $$lock; done

install: $(DEV) ## make .venv with everything in it, editable

clean: ## remove .venv, caches and what the demo wrote
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache semiseg.egg-info demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(USE): $(INPUTS)
	@$(make_venv)
	@$(call install,.[train$(comma)export$(comma)$(EXTRA)$(comma)gateway])
	@touch $@

$(DEV): $(INPUTS)
	@$(make_venv)
	@$(call install,.[train$(comma)export$(comma)$(EXTRA)$(comma)gateway$(comma)ray$(comma)dev])
	@touch $(USE) $@

comma := ,

# A Python that only claims to be there (a version manager's stand-in, a Debian without its venv package) is passed over.
define make_venv
fits='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; \
if ! .venv/bin/python -c "$$fits" 2>/dev/null || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
    found=; \
    for candidate in $(or $(PYTHON),python3.11 python3.12 python3 python); do \
        if "$$candidate" -c "$$fits" 2>/dev/null; then found=$$candidate; break; fi; \
    done; \
    if [ -z "$$found" ]; then \
        echo "semiseg needs Python 3.11 or 3.12 with its venv module (on Debian: python3-venv)," \
             "and none of '$(or $(PYTHON),python3.11 python3.12 python3 python)' is one; name it: make PYTHON=/path/to/python3.11" >&2; \
        exit 2; \
    fi; \
    echo "Making .venv with $$("$$found" --version)"; \
    rm -rf .venv; \
    "$$found" -m venv .venv; \
fi
endef

# $(1) what to install. Where the other build of ONNX Runtime is found, both go first: they share files.
define install
if .venv/bin/python -m pip show --quiet $(OTHER.$(RUNTIME)) >/dev/null 2>&1; then \
    rm -f .venv/.installed-*; \
    .venv/bin/python -m pip uninstall --yes -qq onnxruntime onnxruntime-gpu; \
fi; \
echo "Installing '$(1)' into .venv (a few minutes the first time)"; \
.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
    $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') -e '$(1)'; \
.venv/bin/python -m pip check
endef
