# Two commands matter: `make demo` shows a cluster that fails over, `make test` proves it. `make help` lists all.

SHELL := /bin/bash
# Where rustup puts cargo, which a fresh shell does not know yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
TARGET := $(or $(CARGO_TARGET_DIR),target)

# RELEASE=1 builds optimised programs, which takes minutes.
ifdef RELEASE
PROFILE := --release
BIN := $(TARGET)/release
else
BIN := $(TARGET)/debug
endif

.PHONY: help packages clients build demo test ui-test fmt lint doc unit soak chaos chaos-planted bench bench-failover

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  KEEP=1 make demo       leaves the cluster up and says how to use and stop it"
	@echo "  RELEASE=1 make demo    with optimised programs"

packages: ## Install what is missing (etcd, PostgreSQL, HAProxy, protoc; with sudo when not root)
	@deploy/install-packages.sh

clients: ## Install the programs that only tests use (Prometheus, PgBouncer, keepalived, jq)
	@tests/install-clients.sh

build: packages ## Build all programs
	@echo "building (the first time takes a few minutes)"
	cargo build --locked --workspace --bins $(PROFILE)

demo: build ## Start three nodes, kill the primary, watch the cluster go on
	@$(BIN)/demo

test: packages clients fmt lint doc unit ## Everything that CI checks

fmt:
	cargo fmt --all --check

lint:
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

unit:
	cargo test --locked --workspace

MINUTES ?= 60
soak: ## Simulate for MINUTES=60, ever new seeds; those that fail, or go where none went, are added to tests/corpus.txt
	REGENT_MINUTES=$(MINUTES) REGENT_FIRST_SEED=$(or $(FIRST_SEED),$(shell date +%s)000) REGENT_CORPUS=$(CURDIR)/tests/corpus.txt \
	cargo test --locked --profile soak -p regent-tests --test simulation seeds -- --nocapture

ui-test: ## The status page in a real browser (installs Chromium, which is large)
	@WITH_BROWSER=yes deploy/install-packages.sh
	REGENT_BROWSER=$${REGENT_BROWSER:-$$(command -v chromium)} cargo test --locked -p regent-tests --test cluster the_status_page -- --nocapture

# The seed of a campaign, how many faults, and options of `regent-chaos run`: make chaos CHAOS="--namespaces --mode sync"
FAULTS ?= 60
CHAOS ?=
chaos: build ## Let 60 real faults happen to a real cluster, judge what its clients saw, write a report (10 minutes)
	$(BIN)/regent-chaos run --faults $(FAULTS) $(if $(SEED),--seed $(SEED)) $(CHAOS)

chaos-planted: packages ## Show that agents with known bugs are found by such campaigns (half an hour)
	cargo build --locked --workspace --bins --features regent-chaos/planted
	$(TARGET)/debug/regent-chaos planted $(TARGET)/debug/regent-planted

# async or sync
MODE ?= async
FAILOVER := $(TARGET)/release/failover-bench --mode $(MODE)
NOT_ROOT := no failover times: network namespaces need root

bench: packages ## Print figures and a few failover times (builds optimised programs)
	cargo build --locked --workspace --bins --release
	@$(TARGET)/release/bench
	@if [ "$$(id -u)" = 0 ]; then $(FAILOVER) --ttl 5 --runs 1 --rows power-off,postmaster,agent-killed,hand-over; \
	else echo "$(NOT_ROOT)"; fi

bench-failover: packages ## Make the failover table of docs/benchmarks.md; PEER_PATRONI=.../bin/patroni adds Patroni (an hour)
	cargo build --locked --workspace --bins --release
	@if [ "$$(id -u)" = 0 ]; then $(FAILOVER) --product regent,patroni --out docs/benchmarks.md; else echo "$(NOT_ROOT)"; exit 1; fi
