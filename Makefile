# `make help` lists the commands. Each command first builds and installs what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := .docs
MERMAID := docs/assets/mermaid.min.js
EXAMPLE := build/example
DEMO := build/demo

# The emulators need Python 3.13. pyenv may have it, although it is not on the PATH.
PYTHON313 ?= $(firstword $(wildcard $(shell pyenv root 2>/dev/null)/versions/3.13*/bin/python3.13) python3.13)
EMULATORS := .emulators
PRISM_FOLDER := .prism
EXTENSIONS := $(EMULATORS)/home/.duckdb/extensions/v1.5.5/linux_amd64
TORCHSERVE := .torchserve
# Airflow 2 is the oldest version that the DAGs support.
AIRFLOW ?= 3
AIRFLOW_ENV := .airflow/$(AIRFLOW)

# The stamp of .venv holds the build of torch that is installed, which stays until TORCH names the other
# one. If the goal is an image, TORCH is the build for the image instead.
BUILT := $(shell cat $(STAMP) 2>/dev/null)
WANTED := $(or $(if $(filter image template,$(MAKECMDGOALS)),,$(TORCH)),$(BUILT),cpu)
SAME := $(filter $(WANTED),$(BUILT))

# Python keeps the compiled modules, whatever the environment says: without them, each of the hundreds of
# processes that the tests start compiles Beam and torch first, which takes longer than the rest of a start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help torch_differs prism prism_given templates docs test-docs setup emulators demo demo-bigquery demo-stream scale-demo local-cloud serve torchserve test test-fast coverage test-dags check format example notebooks image template image-check lock bench bench-bigquery bench-stream bench-serving bench-endpoint fuzz kills soak dist release clean distclean all
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: $(STAMP)  ## create .venv with pinned versions of all packages; TORCH=cuda for a GPU

$(STAMP): pyproject.toml constraints.txt setup.py $(if $(SAME),,torch_differs)
	$(call one_of,TORCH,cpu cuda)
	@$(PYTHON) tools/install.py --torch $(WANTED) $(if $(SAME),--keep) $(VENV) -c constraints.txt -e '.[dev]'
	@echo $(WANTED) > $@

demo: $(STAMP)  ## score 200,000 example transactions and show the result
	@$(BIN)/python -m examples.transactions.demo --output $(DEMO)

emulators: $(EMULATORS)/.installed  ## install the stand-ins for Google Cloud (needs Python 3.13)

$(EMULATORS)/.installed: emulators.txt
	@$(PYTHON313) tools/install.py $(EMULATORS) -r emulators.txt
	@mkdir -p $(EXTENSIONS)
	@cp $(EMULATORS)/lib/python3.13/site-packages/duckdb_extension_*/extensions/v1.5.5/*.duckdb_extension $(EXTENSIONS)/
	@touch $@

prism: $(if $(PRISM),prism_given,$(PRISM_FOLDER)/prism)  ## get Beam's runner Prism into .prism (needs Go); PRISM=PATH uses your own

# The version is that of Beam. Go stamps a program that it has built before with the old time.
$(PRISM_FOLDER)/prism: constraints.txt
	GOBIN=$(abspath $(PRISM_FOLDER)) go install \
		github.com/apache/beam/sdks/v2/go/cmd/prism@v$(shell sed -n 's/^apache-beam==//p' constraints.txt)
	@touch $@

prism_given:
	@test -x "$(PRISM)" || { echo "PRISM=$(PRISM): expected the program prism" >&2; exit 1; }
	@mkdir -p $(PRISM_FOLDER)
	@ln -sfn "$(abspath $(PRISM))" $(PRISM_FOLDER)/prism

demo-bigquery: $(STAMP) $(EMULATORS)/.installed  ## score a table of a local BigQuery into another table
	@$(BIN)/python -m examples.transactions.demo_bigquery

demo-stream: $(STAMP) $(EMULATORS)/.installed  ## score a stream of a local Pub/Sub (needs gcloud's emulator)
	@$(BIN)/python -m examples.transactions.demo_stream

scale-demo: $(STAMP) $(EMULATORS)/.installed  ## test what a stream on this machine sustains, and write a page about it
	@$(BIN)/python -m examples.transactions.demo_scale

local-cloud: $(STAMP) $(EMULATORS)/.installed  ## run stand-ins for Google Cloud until Ctrl-C, and print their addresses
	@$(BIN)/python -m examples.local_cloud

example: $(STAMP)  ## create the example's data and model packages in build/example
	@$(BIN)/python -m examples.transactions.build --output $(EXAMPLE)

serve: $(STAMP)  ## serve the example's model on http://127.0.0.1:8080
	@test -e $(EXAMPLE)/model/model.json || $(BIN)/python -m examples.transactions.build --output $(EXAMPLE)
	@$(BIN)/python -m serving --model_path $(EXAMPLE)/model

torchserve: $(TORCHSERVE)/.installed  ## serve the example's .mar with TorchServe on port 8085 (needs Java)
	@test -e $(EXAMPLE)/model/model.json || $(BIN)/python -m examples.transactions.build --output $(EXAMPLE)
	@$(BIN)/python -m examples.transactions.torchserve --mar $(EXAMPLE)/pytorch_autoencoder.mar

# TorchServe uses torch and the other packages of .venv.
$(TORCHSERVE)/.installed: torchserve.txt $(STAMP)
	@$(BIN)/python tools/install.py $(TORCHSERVE) --no-deps -r torchserve.txt
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > borrowed.pth.tmp
	@mv borrowed.pth.tmp $$($(TORCHSERVE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth
	@touch $@

# Some tests wait, so there is one worker more than there are cores.
WORKERS := -n $$(($$(nproc) + 1))

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest $(WORKERS) --dist loadgroup

test-fast: $(STAMP)  ## run the tests of the tiers pure and beam, for every save (90 s on two cores)
	$(BIN)/python -m pytest $(WORKERS) --dist worksteal $(FAST)

FAST := -m '(pure or beam) and not slow' --ignore-glob='*/test_benchmark_*' --hypothesis-profile fast

coverage: $(STAMP)  ## run the tests, print untested lines and branches: TESTS="-m 'pure or beam'"
	@rm -rf build/coverage
	$(BIN)/coverage run -m pytest -n auto --dist loadgroup $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-dags: $(STAMP) $(EMULATORS)/.installed $(AIRFLOW_ENV)/.installed  ## test the DAGs in Airflow 3, or 2 with AIRFLOW=2 (three minutes)
	PYTHONPATH=. $(AIRFLOW_ENV)/bin/python -m pytest tests_dags

$(AIRFLOW_ENV)/.installed: airflow-$(AIRFLOW).txt
	@$(PYTHON) tools/install.py $(AIRFLOW_ENV) --no-deps -r airflow-$(AIRFLOW).txt
	@touch $@

# The versions are those of constraints.txt, the same for CPU and GPU except for torch. If torch's index
# cannot be reached, set TORCH_CPU='--find-links FOLDER' to a folder with its wheel.
TORCH_CPU ?= --torch-backend cpu
LOCK := uv pip compile --quiet --upgrade --generate-hashes --no-annotate --custom-compile-command 'make lock' \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 -c constraints.txt \
	--extra safetensors --extra delta --extra iceberg pyproject.toml

notebooks: $(STAMP) $(EMULATORS)/.installed  ## run the notebooks and save their outputs (needs gcloud's emulator)
	@$(BIN)/python tools/notebooks.py

lock: $(STAMP)  ## write templates/requirements-*.txt for the images, with hashes
	$(BIN)/$(LOCK) $(TORCH_CPU) --output-file templates/requirements-cpu.txt
	$(BIN)/$(LOCK) --output-file templates/requirements-cuda.txt

# The tag names the pipeline and the build of torch. Set BUILDER=cloud to use Cloud Build if you do not
# have Docker.
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

# Wheels with your own code, separated by spaces or commas. The image gets what lies in templates/extra.
comma := ,
WHEELS = $(subst $(comma), ,$(EXTRA))
NOT_WHEELS = $(filter-out %.whl,$(WHEELS))$(filter-out $(wildcard $(WHEELS)),$(WHEELS))

image:  ## build the image for launcher and workers: IMAGE=..., TORCH=cuda, BUILDER=cloud, EXTRA=WHEEL
	$(call one_of,TORCH,cpu cuda)$(call one_of,BUILDER,docker cloud)$(if $(PIPELINE),$(call one_of,PIPELINE,$(PIPELINES)))
	$(if $(NOT_WHEELS),$(error EXTRA='$(EXTRA)': expected wheels (.whl) that exist))
	$(if $(WHEELS),@trap 'rm -f templates/extra/*.whl' EXIT && cp $(WHEELS) templates/extra/ && )$(BUILD_$(BUILDER))

template: $(STAMP)  ## create a Flex Template: PIPELINE=batch_local BUCKET=... IMAGE=REGION-docker.pkg.dev/...
	$(call one_of,PIPELINE,$(PIPELINES))$(if $(BUCKET),,$(error BUCKET is missing: it names the bucket for the template, gs://BUCKET/templates/))
	$(if $(findstring /,$(patsubst %/,%,$(BUCKET:gs://%=%))),$(error BUCKET='$(BUCKET)': expected only the name of a bucket))
	$(if $(findstring /,$(IMAGE)),,$(error IMAGE='$(IMAGE)': expected a path in a repository, REGION-docker.pkg.dev/PROJECT/REPOSITORY/millrace))
	$(MAKE) --no-print-directory image
	$(PUSH_$(BUILDER))
	$(BIN)/python -m pipelines.template_spec $(PIPELINE) --bucket $(BUCKET) --image "$$($(DIGEST_$(BUILDER)))"

image-check: $(STAMP)  ## build the image on stand-in bases without Docker, and run it (Debian, root)
	BIN=$(BIN) templates/check_image

templates: $(STAMP)  ## generate templates/*.json and docs/reference/flags from the flags, and steps.md
	$(BIN)/python -m pipelines.metadata
	$(BIN)/python tools/flag_pages.py
	$(BIN)/python tools/step_methods.py
	$(BIN)/python tools/step_page.py

docs: $(DOCS)/.installed $(MERMAID)  ## build the documentation site in build/site
	@$(DOCS)/bin/zensical build --strict --clean
	@echo "The site starts at build/site/index.html."

test-docs: docs  ## test the site in Chromium (skipped without it)
	@$(DOCS)/bin/python -m pytest tests_docs

$(DOCS)/.installed: docs.txt
	@$(PYTHON) tools/install.py $(DOCS) --no-deps -r docs.txt
	@touch $@

# The site serves the script that draws its diagrams, so that a page asks no other host.
$(MERMAID):
	@mkdir -p build $(@D)
	@npm pack --silent --pack-destination build mermaid@12.3.0 > build/mermaid.log
	@tar -xzf build/mermaid-12.3.0.tgz -C build package/dist/mermaid.min.js
	@mv build/package/dist/mermaid.min.js $@

check: $(STAMP)  ## check formatting, lint, types, words and generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint templates/Dockerfile serving/Dockerfile
	$(BIN)/python -m pipelines.metadata --check
	$(BIN)/python tools/flag_pages.py --check
	$(BIN)/python tools/step_methods.py --check
	$(BIN)/python tools/step_page.py --check
	$(BIN)/python tools/words.py
	$(BIN)/codespell

format: $(STAMP)  ## format the code and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## compare with stock Beam and loops; with Daft and pandas if they are installed (ten minutes)
	$(BIN)/python -m benchmarks.files.compare
	$(BIN)/python -m benchmarks.predict_cost
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.raw.compare

bench-commit: $(STAMP) $(EMULATORS)/.installed  ## commit 10,000 and 100,000 files to a bucket with slow requests (ten minutes)
	$(BIN)/python -m benchmarks.files.commit

bench-bigquery: $(STAMP) $(EMULATORS)/.installed  ## compare reading and writing BigQuery with stock Beam, and measure appends (under fifteen minutes)
	$(BIN)/python -m benchmarks.bigquery.read
	$(BIN)/python -m benchmarks.bigquery.write
	$(BIN)/python -m benchmarks.bigquery.table
	$(BIN)/python -m benchmarks.bigquery.appends

bench-serving: $(STAMP)  ## compare the server with a plain FastAPI app, and with TorchServe if installed
	$(BIN)/python -m benchmarks.serving.servers
	$(BIN)/python -m benchmarks.serving.open_loop

bench-endpoint: $(STAMP)  ## compare requests to an endpoint with Beam's handler and a plain load generator
	$(BIN)/python -m benchmarks.serving.endpoint

bench-stream: $(STAMP) $(EMULATORS)/.installed  ## compare streams with stock Beam and the reference (under fifteen minutes)
	$(BIN)/python -m benchmarks.stream.core
	$(BIN)/python -m benchmarks.stream.latency
	$(BIN)/python -m benchmarks.stream.memory

FUZZ_MINUTES ?= 2

fuzz: $(STAMP)  ## read bad messages and files of every kind, and lose no row (five minutes, 6 GB): FUZZ_MINUTES=60
	$(BIN)/python -m benchmarks.stream.fuzz
	$(BIN)/python -m benchmarks.fuzz.files --minutes $(FUZZ_MINUTES)

kills: $(STAMP) $(EMULATORS)/.installed  ## kill 300 runs at random moments: no row is lost or duplicated (under an hour)
	$(BIN)/python -m benchmarks.kills.runs

soak: $(STAMP) $(EMULATORS)/.installed  ## run a stream for an hour with kills, faulty messages and an outage, and lose no message (70 minutes, 14 GB)
	$(BIN)/python -m benchmarks.stream.soak

dist: $(STAMP)  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

release: $(STAMP)  ## check and build a release, and set its tag: VERSION=0.1.0; DRY_RUN=1 sets no tag
	$(BIN)/python tools/release.py $(VERSION) $(if $(DRY_RUN),--dry-run)

clean:  ## remove all built files, keep .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

distclean: clean  ## remove all built files and environments
	rm -rf $(VENV) $(EMULATORS) $(PRISM_FOLDER) $(TORCHSERVE) $(DOCS) docs/assets .airflow .release .uv

all: emulators check test demo demo-bigquery  ## run what CI runs
