# make demo    set everything up and build the bundled sample for a Cortex-M4
# make test    all tests, with what they need
# make lint    format, lint and types
# make bench-plan   does the score predict, are the plans good, what does rounding buy: fifty minutes of CPU time
# make fuzz   every reader under a coverage-guided fuzzer, FUZZ_SECONDS=600 each
# make bench-kernels   instructions, flash, RAM and stack of one inference on every core: a minute
# make bench-cycles    where the instructions go, by kind and function, and an estimate of cycles
# make bench-host   time of an LSTM step on this computer, the C against LiteRT: half a minute

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FUZZ_SECONDS ?= 600

# What apt installs where it is missing. Each line: a program, and the Debian package that brings it.
TOOLS := arm-none-eabi-gcc:gcc-arm-none-eabi qemu-system-arm:qemu-system-arm qemu-aarch64:qemu-user gcc:gcc
TEST_TOOLS := $(TOOLS) aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu arm-linux-gnueabi-gcc:gcc-arm-linux-gnueabi clang:clang \
	gdb-multiarch:gdb-multiarch openocd:openocd /usr/sbin/sshd:openssh-server ssh:openssh-client
LIBRARIES := libc6-dev
TEST_LIBRARIES := $(LIBRARIES) libc6-dev-arm64-cross libc6-dev-armel-cross

.PHONY: demo test lint fuzz bench-plan bench-host bench-kernels bench-cycles tools test-tools clean

demo: $(VENV)/demo tools
	$(BIN)/edgetqs build --target cortex-m4 --force

test: $(VENV)/test test-tools
	$(BIN)/ruff format --check edgetqs tests tools bench hil
	$(BIN)/ruff check edgetqs tests tools bench hil
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/test
	$(BIN)/ruff format edgetqs tests tools bench hil
	$(BIN)/ruff check --fix edgetqs tests tools bench hil
	$(BIN)/mypy

fuzz: $(VENV)/fuzz
	$(BIN)/python tools/fuzz.py --all $(FUZZ_SECONDS)

bench-plan: $(VENV)/bench
	$(BIN)/python bench/plan.py $(BENCH_ARGS)

bench-kernels: $(VENV)/demo tools
	$(BIN)/python bench/kernels.py $(BENCH_ARGS)

bench-cycles: $(VENV)/demo tools
	$(BIN)/python bench/cycles.py $(BENCH_ARGS)

bench-host: $(VENV)/demo tools
	$(BIN)/python bench/host.py $(BENCH_ARGS)

$(VENV)/demo: pyproject.toml
	tools/make_venv.sh $(PYTHON) $(VENV) .
	touch $@

$(VENV)/test: pyproject.toml
	tools/make_venv.sh $(PYTHON) $(VENV) ".[test,tensorflow,recipe,flash,lab,keras2]"
	touch $@ $(VENV)/demo

$(VENV)/fuzz: pyproject.toml
	tools/make_venv.sh $(PYTHON) $(VENV) ".[test,fuzz]"
	touch $@ $(VENV)/demo

$(VENV)/bench: pyproject.toml
	tools/make_venv.sh $(PYTHON) $(VENV) ".[bench]"
	touch $@ $(VENV)/demo

tools:
	@tools/apt_install.sh "$(TOOLS)" "$(LIBRARIES)"

test-tools:
	@tools/apt_install.sh "$(TEST_TOOLS)" "$(TEST_LIBRARIES)"

clean:
	rm -rf build dist $(VENV)
