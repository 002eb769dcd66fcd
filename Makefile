# `make demo` and `make test` do all the set-up that they need: see ci/setup. Nothing here needs an environment
# variable, and `make -C folder` works.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup build demo bench test zoo fuzz lint clean-cache

# Limits, in seconds: nothing here may hang.
DEMO_LIMIT_S := 3600
TEST_LIMIT_S := 5400
BENCH_LIMIT_S := 36000
FUZZ_LIMIT_S := 36000

# Of `make fuzz`, for each of about twenty readers.
CASES := 100000

# On a terminal Ctrl-C must reach the commands; elsewhere the limit must end their children too.
LIMITED := timeout $(shell test -t 0 && echo --foreground) --kill-after=30

help: ## This list
	@printf 'lockstep: data-parallel training whose result does not depend on the number of processes\n\n'
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1|/p' Makefile | while IFS='|' read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: ## Find or install MPI, libtorch and libclang (make demo and make test do it by themselves)
	@ci/setup

build: setup ## Both programs, as make demo and make test use them
	@$(LIMITED) $(DEMO_LIMIT_S) cargo build --workspace

demo: build ## Train alone, with DDP and with ZeRO-1, and prove the runs equal bit for bit
	@$(LIMITED) $(DEMO_LIMIT_S) ci/demo

bench: ## Measure ours against PyTorch and DeepSpeed in pairs: hours (ONLY='PATTERN ...' for a part)
	@ci/setup --peers
	@$(LIMITED) $(DEMO_LIMIT_S) cargo build --release --workspace
	@$(LIMITED) $(BENCH_LIMIT_S) ci/bench $(foreach pattern,$(ONLY),--only '$(pattern)')

test: setup ## The whole test suite
	@$(LIMITED) $(TEST_LIMIT_S) ci/test

zoo: setup ## Plant every bug, judge the harness's answers, and count false alarms in 200 clean runs
	@$(LIMITED) $(TEST_LIMIT_S) ci/zoo

fuzz: setup ## Damaged and hostile files for every reader (CASES=100000 for each)
	@LOCKSTEP_FUZZ_CASES=$(CASES) $(LIMITED) $(FUZZ_LIMIT_S) cargo test --package lockstep-harness --test fuzz
	@LOCKSTEP_FUZZ_CASES=$(CASES) $(LIMITED) $(FUZZ_LIMIT_S) cargo test --features lockstep/mutations --test programs parsers::

lint: setup ## Formatting, clippy, shell scripts, dependencies and licences
	@$(LIMITED) $(TEST_LIMIT_S) ci/lint

clean-cache: ## Remove what ci/setup installed outside this checkout (about 5 GB)
	@ci/clean-cache
