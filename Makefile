# The targets of this project; `make` alone lists them. Set-up needs Python 3.11 and make, and the network once.
PYTHON ?= python3.11
VENV   := .venv
PY     := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
ARGS   ?=
# Hundreds of processes are started here, by tests above all; without a cache each compiles every module again (0.2 to 1 s).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run up down status test test-fast test-fluss lint types bench bench-peers bench-flink nexmark load scenarios torture kills soak torture-sql stream-kills bench-stream-idle

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## virtual environment from the lock, Java if there is none, Spark's jars: once, then offline
	@PYTHON='$(PYTHON)' VENV='$(VENV)' sh flashlake/setup/environment.sh
	@$(PY) -m flashlake.setup

run: setup ## the whole path on real data, with a summary at the end (flashlake demo; ARGS="--days 31")
	@$(PY) -m flashlake demo $(ARGS)

up: setup ## start store, stream worker, tiering worker and Dagster; returns when all are healthy
	@$(PY) -m flashlake up $(ARGS)

down: ## stop what `make up` started
	@$(PY) -m flashlake down $(ARGS)

status: ## health and lag of each service
	@$(PY) -m flashlake status $(ARGS)

test: setup ## every test, with short runs of the spark, dagster and crash ones (ARGS="-k name"; in one process: ARGS="-n 0")
	@$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup ## the inner loop: no JVM, no Dagster, nothing killed
	@$(PYTEST) -m "not spark and not dagster and not crash" $(ARGS)

test-fluss: setup ## the contract over a real Apache Fluss, started and stopped (Java, Maven once)
	@FLASHLAKE_TEST_FLUSS=1 $(PYTEST) tests/contract tests/fluss -k fluss $(ARGS)

lint: setup ## ruff
	@$(PY) -m ruff check . $(ARGS)

types: setup ## pyright
	@$(PY) -m pyright $(ARGS)

bench: setup ## ratios against sqlite and plain Parquet, in one run
	@$(PY) -m benchmarks $(ARGS)

bench-peers: setup ## ratios against Redis, Kafka and Apache Fluss, started and stopped here (ARGS="lookup append --runs 5")
	@$(PY) -m benchmarks.peers $(ARGS)

bench-flink: setup ## stream jobs and Apache Flink over Apache Fluss in turn, set up, started and stopped here (ARGS="q4 q7 --rows 1000000")
	@$(PY) -m benchmarks.flink $(ARGS)

nexmark: setup ## q0 to q22: rows, equal to batch and to published results, rate, ratio to Flink (ARGS="q4 --flink": measured here)
	@$(PY) -m benchmarks.nexmark $(ARGS)

load: setup ## writers and readers on one server at once, bounded in time (ARGS="--seconds 60 --writers 2")
	@$(PY) -m benchmarks.load $(ARGS)

scenarios: setup ## the five scenarios end to end: latency, rows, equality (ARGS="wide_table --seconds 60 --rate 20000")
	@$(PY) -m assets.scenarios $(ARGS)

torture: setup ## 10,000 seeds of power cuts, I/O errors, full disks and flipped bits, held to a model (SEEDS=1000 FIRST=0)
	@$(PY) -m tests.torture.campaign $(ARGS)

kills: setup ## long runs of the kill -9 campaigns (ROUNDS=200 SEED=1)
	@CRASH_ROUNDS=$${ROUNDS:-200} CRASH_SEED=$${SEED:-1} FLASHLAKE_CAMPAIGN=$${ROUNDS:-200} $(PYTEST) -m crash $(ARGS)

torture-sql: setup ## generated queries over generated histories, stream = batch = DuckDB (MINUTES=60 FIRST=0)
	@$(PY) -m tests.stream.random_campaign --minutes $${MINUTES:-60} --first $${FIRST:-0} $(ARGS)

stream-kills: setup ## workers, server and tiering killed at random, every sink compared with batch (MINUTES=10 SEED=1)
	@$(PY) -m tests.stream.kills --minutes $${MINUTES:-10} --seed $${SEED:-1} $(ARGS)

bench-stream-idle: setup ## what 100 idle jobs cost a worker, in percent of one core (ARGS="--jobs 100 --seconds 20")
	@$(PY) -m benchmarks.idle_jobs $(ARGS)

soak: setup ## a server under mixed load, killed every minute, held to a model to the row (MINUTES=30)
	@$(PY) -m tests.torture.soak $(ARGS)
