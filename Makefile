# make quickstart   sets everything up, runs the whole loop small, ends with a report
# make test         sets everything up, runs the test suite

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 0

.PHONY: help setup quickstart test check format unit fuzz mutations quickstart-seeds stories real-data ui-load store-kills vllm-test chaos chaos-quick two-hosts job-startup driver-overhead adapter-sync rollout-engines ppo-vs-trl learn-peak memory-vs-trl gpu-bench gpu-parts gpu-test system-packages clean

help:
	@sed -n 's/^# //p' Makefile
	@echo "more: make check | fuzz | mutations | chaos | chaos-quick | quickstart-seeds | stories | real-data | ui-load | store-kills |"
	@echo "  two-hosts | job-startup | driver-overhead | adapter-sync | rollout-engines | vllm-test | ppo-vs-trl | learn-peak |"
	@echo "  memory-vs-trl | gpu-bench | gpu-parts | gpu-test | clean"

setup: $(VENV)/.ready $(VENV)/.kernels

$(VENV)/.ready: pyproject.toml constraints.txt scripts/setup.sh
	VENV=$(VENV) scripts/setup.sh

# compiled anew when their sources have changed; the library's name tells which processor it is for
$(VENV)/.kernels: $(VENV)/.ready $(wildcard rlhf/models/kernels/*.cpp rlhf/models/kernels/*.h)
	$(BIN)/python -m rlhf.models.kernels.build
	touch $@

quickstart: setup
	$(BIN)/rlhf quickstart --fresh --seed $(SEED)

# browser and database for the page's tests; without the rights to install them those tests say so
system-packages:
	scripts/ensure_system_packages.sh

test: setup system-packages
	$(BIN)/python -m pytest -q -n 3 --dist loadscope --no-loadscope-reorder --durations=15

# the fast part: format, lint, types, architecture, unit tests
check: setup
	$(BIN)/ruff format --check rlhf cluster preference_ui tests scripts benchmarks
	$(BIN)/ruff check rlhf cluster preference_ui tests scripts benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadscope tests/architecture tests/unit

format: setup
	$(BIN)/ruff format rlhf cluster preference_ui tests scripts benchmarks
	$(BIN)/ruff check --fix rlhf cluster preference_ui tests scripts benchmarks

# every listed fault planted in algos/ must make a test fail
mutations: setup
	$(BIN)/python scripts/mutate_algos.py --output benchmarks/mutations-$$(date +%F).json

# readers of strangers' bytes under a coverage-guided fuzzer; make test does a few seconds of it without
FUZZ_MINUTES ?= 60
fuzz: setup
	$(BIN)/pip install --quiet "atheris>=3,<4"
	$(BIN)/python scripts/fuzz.py --minutes $(FUZZ_MINUTES) --output benchmarks/fuzz-$$(date +%F).json

# the quickstart on seeds 0, 1, 2; summaries to benchmarks/
quickstart-seeds: setup
	$(BIN)/python benchmarks/quickstart_seeds.py

# a real pretrained model and a planted reward, seeds 0, 1, 2, beside the most that any policy can gain
stories: setup
	$(BIN)/python benchmarks/stories.py

# reward model on real human preferences, SFT on real instructions
real-data: setup
	$(BIN)/python benchmarks/real_data.py

# the ranking page under the load of 40 people, and killed 50 times while they vote, on both databases
ui-load: setup system-packages
	$(BIN)/python benchmarks/ui_load.py
	$(BIN)/python benchmarks/ui_load.py --database postgresql

# voting processes killed 50 times on both databases; durable votes per second
store-kills: setup system-packages
	$(BIN)/python benchmarks/store_kills.py
	$(BIN)/python benchmarks/store_votes.py

# the vLLM rollout engine against a real vLLM, which gets a venv of its own; figures to benchmarks/
VLLM_VENV ?= .venv-vllm
vllm-test: setup $(VLLM_VENV)/.ready
	$(VLLM_VENV)/bin/python benchmarks/vllm_engine.py

$(VLLM_VENV)/.ready: scripts/setup_vllm.sh
	VLLM_VENV=$(VLLM_VENV) scripts/setup_vllm.sh

# processes killed and frozen, disks filled, bits flipped, every cut resumed: one table, at most an hour
chaos: setup
	$(BIN)/python -m pytest -q tests/ray/long_driver.py
	$(BIN)/python benchmarks/chaos.py

# the part of it that is in make test
chaos-quick: setup
	$(BIN)/python -m pytest -q --durations=10 tests/unit/engine tests/unit/workers/test_health.py tests/ray/test_chaos.py \
	  tests/runtime/test_fleet_faults.py

# cable cut, host killed, twenty jobs in a row on two network namespaces; needs the right to make them
two-hosts: setup
	$(BIN)/python benchmarks/two_hosts.py

# seconds from rlhf submit to the first training step on a warm cluster
job-startup: setup
	$(BIN)/python benchmarks/job_startup.py

# the driver's time per step with 1 to 64 rollout workers that hold no model
driver-overhead: setup
	$(BIN)/python benchmarks/driver_overhead.py

# side by side, results to benchmarks/: an adapter's way to the workers, decoding, whole PPO steps, memory
adapter-sync: setup
	$(BIN)/python benchmarks/adapter_sync.py

rollout-engines: setup
	$(BIN)/python benchmarks/rollout_engines.py

ppo-vs-trl: setup
	$(BIN)/python benchmarks/ppo_vs_trl.py

learn-peak: setup
	$(BIN)/python benchmarks/learn_peak.py

memory-vs-trl: setup
	$(BIN)/python benchmarks/memory_vs_trl.py

# whole PPO steps on a GPU, bf16 and nf4, time and peak memory beside what rlhf plan says; at most eight minutes
gpu-bench: setup
	$(BIN)/python benchmarks/gpu.py

# passes of learning, judging and decoding of a 7B-shaped model, without Ray
gpu-parts: setup
	$(BIN)/python benchmarks/gpu_parts.py

# what needs a GPU; on other machines there is nothing to collect
gpu-test: setup
	$(BIN)/python -m pytest -q tests/gpu

clean:
	rm -rf $(VENV) build dist *.egg-info
