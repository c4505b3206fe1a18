# `make demo` and `make test` need Python 3.11 or newer and nothing else: each makes .venv and installs what it needs.
# What each target does is in deploy/tasks.py, which runs without make, too: `python -m deploy.tasks demo`. This file finds
# a Python for it. `make help` explains the variables.

PYTHON ?=
RUNTIME ?= cpu
TORCH_INDEX ?=
OUT ?= demo-output
JOBS ?=
ARGS ?=

TARGETS := demo test test-all conditions check page docs wheel audit install clean help
# The newest comes first. A .venv that is there is kept, whatever its Python.
CANDIDATES := python3.14 python3.13 python3.12 python3.11 python3 python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: $(TARGETS)

# "+": `make --dry-run` runs this line, too, and the task then only prints its commands.
$(TARGETS):
	+@$(find_python); \
	"$$python" -m deploy.tasks $@ $(if $(PYTHON),--python '$(PYTHON)') --runtime '$(RUNTIME)' \
	    --torch-index '$(TORCH_INDEX)' --out '$(OUT)' $(if $(JOBS),--jobs '$(JOBS)') $(DRY_RUN) -- $(ARGS)

DRY_RUN = $(if $(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS)))),--dry-run)

# A Python that only claims to be there (a version manager's stand-in, a Debian without its venv package) is passed over.
define find_python
python=; reasons=; \
for candidate in $(if $(PYTHON),'$(PYTHON)',.venv/bin/python $(CANDIDATES)); do \
    if reason=$$("$$candidate" -m deploy.tasks fits $(if $(PYTHON),--named) 2>/dev/null); then \
        python=$$candidate; break; \
    fi; \
    [ -z "$$reason" ] || reasons="$$reasons ($$candidate: $$reason)"; \
done; \
if [ -z "$$python" ]; then \
    echo "semiseg needs Python 3.11 or newer with its venv module, and none of '$(or $(PYTHON),$(CANDIDATES))' is one$$reasons." \
         "On Debian and Ubuntu: apt install python3 python3-venv; on macOS: brew install python, or the installer" \
         "of python.org. Another one is named so: make PYTHON=/path/to/python3" >&2; \
    exit 2; \
fi
endef
