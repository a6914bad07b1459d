# `make help` lists the commands; each makes what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXAMPLE := build/example
DEMO := build/demo

# The emulators need Python 3.13; pyenv may have it without its being on the path.
PYTHON313 ?= $(firstword $(wildcard $(shell pyenv root 2>/dev/null)/versions/3.13*/bin/python3.13) python3.13)
EMULATORS := .emulators
EXTENSIONS := $(EMULATORS)/home/.duckdb/extensions/v1.5.5/linux_amd64
TORCHSERVE := .torchserve
# 2 is the oldest that the DAGs are for.
AIRFLOW ?= 3
AIRFLOW_ENV := .airflow/$(AIRFLOW)

# The stamp of .venv holds the build of torch that was chosen, which stays until TORCH names the other.
# Where the goal is an image, TORCH is that of the image.
BUILT := $(shell cat $(STAMP) 2>/dev/null)
WANTED := $(or $(if $(filter image template,$(MAKECMDGOALS)),,$(TORCH)),$(BUILT),cpu)
SAME := $(filter $(WANTED),$(BUILT))

.PHONY: help torch_differs templates setup emulators demo demo-bigquery demo-stream local-cloud serve torchserve test test-fast coverage test-dags check format example image template image-check lock bench bench-bigquery bench-stream bench-serving bench-endpoint fuzz kills dist release clean distclean all
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: $(STAMP)  ## make .venv with the pinned versions of everything; TORCH=cuda for a GPU

$(STAMP): pyproject.toml constraints.txt setup.py $(if $(SAME),,torch_differs)
	$(call one_of,TORCH,cpu cuda)
	@$(PYTHON) tools/install.py --torch $(WANTED) $(if $(SAME),--keep) $(VENV) -c constraints.txt -e '.[dev]'
	@echo $(WANTED) > $@

demo: $(STAMP)  ## score 200,000 example transactions and show what happened
	@$(BIN)/python -m examples.transactions.demo --output $(DEMO)

emulators: $(EMULATORS)/.installed  ## install the servers that stand in for Google Cloud (Python 3.13)

$(EMULATORS)/.installed: emulators.txt
	@$(PYTHON313) tools/install.py $(EMULATORS) -r emulators.txt
	@mkdir -p $(EXTENSIONS)
	@cp $(EMULATORS)/lib/python3.13/site-packages/duckdb_extension_*/extensions/v1.5.5/*.duckdb_extension $(EXTENSIONS)/
	@touch $@

demo-bigquery: $(STAMP) $(EMULATORS)/.installed  ## score a table of the local BigQuery into another
	@$(BIN)/python -m examples.transactions.demo_bigquery

demo-stream: $(STAMP) $(EMULATORS)/.installed  ## score a stream of the local Pub/Sub (needs gcloud's emulator)
	@$(BIN)/python -m examples.transactions.demo_stream

local-cloud: $(STAMP) $(EMULATORS)/.installed  ## stand-ins for Google Cloud until Ctrl-C; prints how they are found
	@$(BIN)/python -m examples.local_cloud

example: $(STAMP)  ## make the example's data and model packages under build/example
	@$(BIN)/python -m examples.transactions.build --output $(EXAMPLE)

serve: $(STAMP)  ## serve the example's model on http://127.0.0.1:8080
	@test -e $(EXAMPLE)/model/model.json || $(BIN)/python -m examples.transactions.build --output $(EXAMPLE)
	@$(BIN)/python -m serving --model_path $(EXAMPLE)/model

torchserve: $(TORCHSERVE)/.installed  ## serve the example's .mar with TorchServe on port 8085 (needs Java)
	@test -e $(EXAMPLE)/model/model.json || $(BIN)/python -m examples.transactions.build --output $(EXAMPLE)
	@$(BIN)/python -m examples.transactions.torchserve --mar $(EXAMPLE)/pytorch_autoencoder.mar

# Torch and the rest are borrowed from .venv.
$(TORCHSERVE)/.installed: torchserve.txt $(STAMP)
	@$(BIN)/python tools/install.py $(TORCHSERVE) --no-deps -r torchserve.txt
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > borrowed.pth.tmp
	@mv borrowed.pth.tmp $$($(TORCHSERVE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth
	@touch $@

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadgroup

# Python keeps the compiled tests, whatever the environment says: to compile them takes seconds.
# Some tests wait, so there is one worker more than there are cores.
test-fast: $(STAMP)  ## run the tests without other processes: for every save (90 s on two cores)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --dist worksteal $(FAST)

FAST := -m 'pure or beam' --ignore-glob='*/test_benchmark_*' --hypothesis-profile fast

coverage: $(STAMP)  ## run the tests, print branches that none takes: TESTS="-m 'pure or beam'"
	@rm -rf build/coverage
	$(BIN)/coverage run -m pytest -n auto --dist loadgroup $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-dags: $(STAMP) $(EMULATORS)/.installed $(AIRFLOW_ENV)/.installed  ## the DAGs in a real Airflow 3, or AIRFLOW=2 (three minutes)
	PYTHONPATH=. $(AIRFLOW_ENV)/bin/python -m pytest tests_dags

$(AIRFLOW_ENV)/.installed: airflow-$(AIRFLOW).txt
	@$(PYTHON) tools/install.py $(AIRFLOW_ENV) --no-deps -r airflow-$(AIRFLOW).txt
	@touch $@

# Of what is in constraints.txt, the same for CPU and GPU but for torch. Where torch's index cannot be
# reached: TORCH_CPU='--find-links FOLDER', which has its wheel.
TORCH_CPU ?= --torch-backend cpu
LOCK := uv pip compile --quiet --upgrade --generate-hashes --no-annotate --custom-compile-command 'make lock' \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 -c constraints.txt --extra safetensors pyproject.toml

lock: $(STAMP)  ## write templates/requirements-*.txt, what the images install, with hashes
	$(BIN)/$(LOCK) $(TORCH_CPU) --output-file templates/requirements-cpu.txt
	$(BIN)/$(LOCK) --output-file templates/requirements-cuda.txt

# The tag says how images differ. BUILDER=cloud is Cloud Build, for who has no docker.
IMAGE ?= millrace
TORCH ?= cpu
BUILDER ?= docker
PIPELINES := batch_local batch_vertex stream_local stream_vertex
TAG = $(IMAGE):$(or $(PIPELINE),batch_local)-$(TORCH)
TORCH_INDEX_cpu := https://download.pytorch.org/whl/cpu
BUILD_docker = docker build -f templates/Dockerfile -t $(TAG) --build-arg TORCH=$(TORCH) \
	--build-arg TORCH_INDEX=$(TORCH_INDEX_$(TORCH)) --build-arg PIPELINE=$(or $(PIPELINE),batch_local) .
BUILD_cloud = gcloud builds submit --config templates/cloudbuild.yaml --substitutions \
	_TAG=$(TAG),_TORCH=$(TORCH),_TORCH_INDEX=$(TORCH_INDEX_$(TORCH)),_PIPELINE=$(or $(PIPELINE),batch_local) .
PUSH_docker = docker push $(TAG)
PUSH_cloud = @:
DIGEST_docker = docker inspect --format '{{join .RepoDigests "\n"}}' $(TAG) | grep '^$(IMAGE)@'
DIGEST_cloud = gcloud artifacts docker images describe $(TAG) --format 'value(image_summary.fully_qualified_digest)'
one_of = $(if $(filter $(2),$($(1))),,$(error $(1)='$($(1))': expected one of $(2)))

image:  ## build the image of launcher and workers: IMAGE=..., TORCH=cuda, BUILDER=cloud
	$(call one_of,TORCH,cpu cuda)$(call one_of,BUILDER,docker cloud)$(if $(PIPELINE),$(call one_of,PIPELINE,$(PIPELINES)))
	$(BUILD_$(BUILDER))

template: $(STAMP)  ## make a Flex Template: PIPELINE=batch_local BUCKET=... IMAGE=REGION-docker.pkg.dev/...
	$(call one_of,PIPELINE,$(PIPELINES))$(if $(BUCKET),,$(error BUCKET is missing: the template is written to gs://BUCKET/templates/))
	$(if $(findstring /,$(patsubst %/,%,$(BUCKET:gs://%=%))),$(error BUCKET='$(BUCKET)': expected a bucket's name alone))
	$(if $(findstring /,$(IMAGE)),,$(error IMAGE='$(IMAGE)': expected a repository, REGION-docker.pkg.dev/PROJECT/REPOSITORY/millrace))
	$(MAKE) --no-print-directory image
	$(PUSH_$(BUILDER))
	$(BIN)/python -m pipelines.template_spec $(PIPELINE) --bucket $(BUCKET) --image "$$($(DIGEST_$(BUILDER)))"

image-check: $(STAMP)  ## build the image on a stand-in base without an engine, and run it (Debian, root)
	BIN=$(BIN) templates/check_image

templates: $(STAMP)  ## write templates/*.json and docs/flags.md from the flags
	$(BIN)/python -m pipelines.metadata

check: $(STAMP)  ## formatting, lint, types, and what is made of the flags
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint templates/Dockerfile serving/Dockerfile
	$(BIN)/python -m pipelines.metadata --check

format: $(STAMP)  ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## compare with stock Beam and with a plain loop (about five minutes)
	$(BIN)/python -m benchmarks.files.compare
	$(BIN)/python -m benchmarks.predict_cost

bench-bigquery: $(STAMP) $(EMULATORS)/.installed  ## BigQuery in and out, beside stock Beam's (under ten minutes)
	$(BIN)/python -m benchmarks.bigquery.read
	$(BIN)/python -m benchmarks.bigquery.write
	$(BIN)/python -m benchmarks.bigquery.table

bench-serving: $(STAMP)  ## the server beside a plain FastAPI app, and TorchServe where it is installed
	$(BIN)/python -m benchmarks.serving.servers

bench-endpoint: $(STAMP)  ## asking an endpoint, beside Beam's handler and a plain load generator
	$(BIN)/python -m benchmarks.serving.endpoint

bench-stream: $(STAMP) $(EMULATORS)/.installed  ## streams, beside stock Beam and the reference (under fifteen minutes)
	$(BIN)/python -m benchmarks.stream.core
	$(BIN)/python -m benchmarks.stream.latency
	$(BIN)/python -m benchmarks.stream.memory

fuzz: $(STAMP)  ## 300,000 messages of every bad kind through a stream: none lost (five minutes, 6 GB)
	$(BIN)/python -m benchmarks.stream.fuzz

kills: $(STAMP) $(EMULATORS)/.installed  ## kill 300 runs at random moments: no row lost, none doubled (under an hour)
	$(BIN)/python -m benchmarks.kills.runs

dist: $(STAMP)  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

release: $(STAMP)  ## check and build a release, and set its tag: VERSION=0.1.0, DRY_RUN=1 sets none
	$(BIN)/python tools/release.py $(VERSION) $(if $(DRY_RUN),--dry-run)

clean:  ## remove what was built, keep .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

distclean: clean  ## remove what was built and what was installed
	rm -rf $(VENV) $(EMULATORS) $(TORCHSERVE) .airflow .release .uv

all: emulators check test demo demo-bigquery  ## what CI runs
