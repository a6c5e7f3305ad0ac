# Everything a developer or a first-time user needs. Each target installs what it uses.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GRPC_ADDR ?= 127.0.0.1:50051
HTTP_ADDR ?= 127.0.0.1:8000
MODEL ?= demo
WORKERS ?= 2
STUBS := vdiff_grpc/v1/generation_pb2.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install stubs run demo check format browser test test-all bench lock clean

install: $(VENV)/.installed $(STUBS)

$(VENV)/.installed: pyproject.toml setup.py constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints-dev.txt -e '.[dev]'
	touch $@

stubs: $(STUBS)

$(STUBS): proto/vdiff/v1/generation.proto proto/vllm/grpc/engine/vllm_engine.proto proto/generate.py $(VENV)/.installed
	$(BIN)/python proto/generate.py
	touch $@

# Server and gateway together, until Ctrl-C or SIGTERM.
run: install
	exec $(BIN)/vdiff-grpc run --model $(MODEL) --address $(GRPC_ADDR) --gateway-address $(HTTP_ADDR)

# One completion, shown step by step; starts and stops its own server.
demo: install
	$(BIN)/vdiff-grpc demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf breaking --against proto/released.binpb
	$(BIN)/python .ci/audit.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The playground's tests drive the system's own Chromium.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; \
	else \
		echo 'The tests need Chromium or Chrome on PATH: install it, or run "make browser" as root on Debian.' >&2; exit 1; \
	fi >/dev/null

test: check browser
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not long"

test-all: check browser
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

bench: install
	$(BIN)/python -m benchmarks.step

# What the container images are built from, to the hash; for the Dockerfile's Python. The CPU lock
# wants PyTorch's CPU index in TORCH_CPU, as an index's --extra-index-url or a folder's --find-links.
LOCK := $(BIN)/uv pip compile -q --upgrade --generate-hashes --no-annotate \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 -c constraints-dev.txt
TORCH_CPU ?=

lock: export UV_CUSTOM_COMPILE_COMMAND = make lock
lock: install
	$(BIN)/pip install -q 'uv>=0.9'
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		| $(LOCK) - -o requirements/build.txt
	$(LOCK) pyproject.toml --extra gateway --extra telemetry -o requirements/gateway.txt
	$(LOCK) pyproject.toml --extra server --extra parallel --extra telemetry -o requirements/server-cuda.txt
	$(LOCK) $(TORCH_CPU) pyproject.toml --extra server --extra parallel --extra telemetry -o requirements/server-cpu.txt

clean:
	rm -rf $(VENV) build dist *.egg-info vdiff_grpc/*/*_pb2*
