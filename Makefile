# stagediff - build, tests, demo. `make` alone prints the targets.
# Three executors from the same host code: cpu (op.c), sim (op.cu run on the CPU by kernels/simt), cuda (op.cu by nvcc).
#   B=DIR            build folder (build)        ARCH_FLAGS=...  host ISA (-march=native)
#   GENCODE=...      nvcc targets                EXTRA_CFLAGS=.. more flags for host C files

.DEFAULT_GOAL := help
SHELL := /bin/bash
CC := gcc
CXX := g++
B ?= build
JOBS ?= $(shell nproc)
CUDA_HOME ?= /usr/local/cuda
NVCC ?= $(or $(wildcard $(CUDA_HOME)/bin/nvcc),$(shell command -v nvcc))
ARCH_FLAGS ?= -march=native
SIMT_ARCH = $(ARCH_FLAGS)
include kernels/simt/simt.mk

# Warnings are errors with the compiler that CI has; a newer one may know more of them, and users' builds shall not stop for that.
WARN   := -Wall -Wextra -Wpedantic -Wshadow -Wconversion $(if $(filter 12 12.%,$(shell $(CC) -dumpversion 2>/dev/null)),-Werror)
CFLAGS = -std=c11 -O3 $(ARCH_FLAGS) -g -fopenmp -fno-math-errno -fno-trapping-math -I. -D_GNU_SOURCE $(WARN) $(INCS) $(EXTRA_CFLAGS) \
          $(if $(filter kernels/% bench/%,$<),-ffp-contract=fast) # fma in kernels; host code (pixel values) rounds as written
PKGS   := jansson sqlite3 libjpeg libpng libpcre2-8 zlib
LIBS   ?= $(shell pkg-config --libs $(PKGS)) -ldnnl -fopenmp -lm
INCS   := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)

HOST_C  := $(filter-out host/main.c,$(wildcard host/*.c models/*.c sae/*.c analysis/*.c))
BENCH_C := $(wildcard bench/*.c)
OP_C    := $(wildcard kernels/*.c)
OP_CU   := $(wildcard kernels/*.cu)

help: ## print this list
	@echo "stagediff: targets"; grep -hE '^[a-z][a-z-]*:.*## ' Makefile | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# ---------------------------------------------------------------- executors
cpu: $(B)/cpu/stagediff $(B)/cpu/bench ## build/cpu/stagediff and bench: runs anywhere
sim: $(B)/sim/stagediff $(B)/sim/bench ## build/sim/...: the CUDA kernels executed on the CPU (slow; for tests)
cuda: $(B)/cuda/stagediff $(B)/cuda/bench ## build/cuda/...: needs nvcc and cuBLASLt

# cpu: act_t = float.  ref: the CPU ops once more in double, the oracle.  sim, cuda: act_t = bf16
$(B)/cpu/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c $< -o $@
$(B)/ref/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DSTAGEDIFF_REF -MMD -MP -c $< -o $@
$(B)/sim/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DSTAGEDIFF_BF16 -MMD -MP -c $< -o $@
$(B)/cuda/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DSTAGEDIFF_BF16 -MMD -MP -c $< -o $@

GENCODE ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_100,code=sm_100 -gencode arch=compute_100,code=compute_100
NVCCFLAGS = -std=c++17 -O3 -lineinfo -I. -DSTAGEDIFF_BF16 -DSTAGEDIFF_NVTX -Werror all-warnings -Xptxas -warn-spills -Xcompiler -Wall,-Wextra
CUDA_LIBS = -L$(CUDA_HOME)/lib64 -lcublasLt -lcudart -ldl -lrt -lpthread
$(B)/cuda/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(GENCODE) -MMD -MP -c $< -o $@

# The kernels three times through the SIMT layer: plain, under ASan + UBSan, under the race checker.
define SIM_KERNELS # $(1) mode, $(2) folder
$(2)/%.cu.o: %.cu $$(SIMT_HDRS)
	@mkdir -p $$(@D)
	$$(SIMT_CXX) -x c++ $$(SIMT_CXXFLAGS_$(1)) -DSTAGEDIFF_BF16 $$(INCS) -MMD -MP -c $$< -o $$@
$(2)/kernels/simt/%.o: kernels/simt/%.cpp $$(SIMT_HDRS)
	@mkdir -p $$(@D)
	$$(SIMT_CXX) $$(SIMT_RTFLAGS_$(1)) -c $$< -o $$@
$(2)/libkernels.a: $(OP_CU:%.cu=$(2)/%.cu.o) $(call SIMT_OBJS,$(2))
	@rm -f $$@ && ar rcs $$@ $$^
endef
$(eval $(call SIM_KERNELS,plain,$(B)/sim))
$(eval $(call SIM_KERNELS,asan,$(B)/simasan))
$(eval $(call SIM_KERNELS,check,$(B)/simcheck))

archive = @rm -f $@ && ar rcs $@ $^
$(B)/ref/libref.a: $(patsubst %.c,$(B)/ref/%.o,$(filter-out kernels/device.c,$(OP_C))) ; $(archive)
$(B)/cpu/libkernels.a: $(OP_C:%.c=$(B)/cpu/%.o) ; $(archive)
$(B)/cuda/libkernels.a: $(OP_CU:%.cu=$(B)/cuda/%.cu.o) ; $(archive)
$(B)/%/libhost.a: ; $(archive)
define EXECUTOR # $(1) cpu, sim or cuda
$(B)/$(1)/libhost.a: $(HOST_C:%.c=$(B)/$(1)/%.o)
$(B)/$(1)/stagediff: $(B)/$(1)/host/main.o $(B)/$(1)/libhost.a $(B)/$(1)/libkernels.a
	$$(CXX) $$^ $$(LIBS) $(if $(filter cuda,$(1)),$$(CUDA_LIBS)) -o $$@
$(B)/$(1)/bench.o/%.o: bench/%.c # not $(B)/$(1)/bench/: that is the program
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) $(if $(filter cpu,$(1)),,-DSTAGEDIFF_BF16) -MMD -MP -c $$< -o $$@
$(B)/$(1)/bench: $(BENCH_C:bench/%.c=$(B)/$(1)/bench.o/%.o) $(B)/$(1)/libhost.a $(B)/$(1)/libkernels.a $(B)/ref/libref.a
	$$(CXX) $$^ $$(LIBS) $(if $(filter cuda,$(1)),$$(CUDA_LIBS)) -o $$@
endef
$(foreach e,cpu sim cuda,$(eval $(call EXECUTOR,$(e))))

# ---------------------------------------------------------------- tests
# tests/<area>/test_*.c: one cmocka program each, with the area's helpers (tests/<area>/*.c that are no test).
# tests/kernels run on every executor, the rest on cpu.
KERNEL_TESTS := $(patsubst %.c,%,$(wildcard tests/kernels/test_*.c))
HELPERS       = $(filter-out $(wildcard tests/*/test_*.c),$(wildcard tests/*/*.c))
TEST_CPU     := $(patsubst %.c,$(B)/cpu/%,$(wildcard tests/*/test_*.c))
TEST_SIM     := $(addprefix $(B)/sim/,$(KERNEL_TESTS))
TEST_ASAN    := $(addprefix $(B)/simasan/,$(KERNEL_TESTS))
TEST_CHECK   := $(addprefix $(B)/simcheck/,$(KERNEL_TESTS))
TEST_CUDA    := $(addprefix $(B)/cuda/,$(KERNEL_TESTS))
TEST_SCRIPTS := $(wildcard tests/*/test_*.sh)

.SECONDEXPANSION:
helpers_of = $(patsubst %.c,$(B)/$(1)/%.o,$(filter $(patsubst $(B)/$(2)/%,%,$(@D))/%,$(HELPERS)))
$(TEST_CPU): $(B)/cpu/%: $(B)/cpu/%.o $$(call helpers_of,cpu,cpu) $(B)/cpu/libhost.a $(B)/cpu/libkernels.a $(B)/ref/libref.a
	$(CXX) $^ $(LIBS) -lcmocka -o $@
$(TEST_SIM): $(B)/sim/%: $(B)/sim/%.o $$(call helpers_of,sim,sim) $(B)/sim/libhost.a $(B)/sim/libkernels.a $(B)/ref/libref.a
	$(CXX) $^ $(LIBS) -lcmocka -o $@
$(TEST_CUDA): $(B)/cuda/%: $(B)/cuda/%.o $$(call helpers_of,cuda,cuda) $(B)/cuda/libhost.a $(B)/cuda/libkernels.a $(B)/ref/libref.a
	$(CXX) $^ $(LIBS) $(CUDA_LIBS) -lcmocka -o $@
$(TEST_ASAN): $(B)/simasan/%: $(B)/sim/%.o $$(call helpers_of,sim,simasan) $(B)/sim/libhost.a $(B)/simasan/libkernels.a $(B)/ref/libref.a
	@mkdir -p $(@D)
	$(SIMT_CXX) $(SIMT_LDFLAGS_asan) $^ $(LIBS) -lcmocka -o $@
$(TEST_CHECK): $(B)/simcheck/%: $(B)/sim/%.o $$(call helpers_of,sim,simcheck) $(B)/sim/libhost.a $(B)/simcheck/libkernels.a $(B)/ref/libref.a
	@mkdir -p $(@D)
	$(SIMT_CXX) $(SIMT_LDFLAGS_check) $^ $(LIBS) -lcmocka -o $@

# tests/fuzz/fuzz_*.c: readers under ASan and UBSan, by gcc to replay tests/fuzz/corpus/, by clang to look for more
FUZZ_TARGETS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_LIB_C   := $(filter-out host/main.c host/command%.c,$(wildcard host/*.c)) models/config.c sae/sae.c $(wildcard sae/format*.c) $(filter-out tests/fuzz/fuzz_%.c,$(wildcard tests/fuzz/*.c))
FUZZ_FLAGS    = -std=c11 -O1 -g -I. -D_GNU_SOURCE $(INCS) -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
$(B)/replay/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(FUZZ_FLAGS) -MMD -MP -c $< -o $@
$(B)/fuzz/%.o: %.c
	@mkdir -p $(@D)
	clang $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c $< -o $@
$(B)/replay/fuzz_%: $(B)/replay/tests/fuzz/fuzz_%.o $(FUZZ_LIB_C:%.c=$(B)/replay/%.o)
	$(CC) -fsanitize=address,undefined $^ $(LIBS) -o $@
$(B)/fuzz/fuzz_%: $(B)/fuzz/tests/fuzz/fuzz_%.o $(filter-out %/replay.o,$(FUZZ_LIB_C:%.c=$(B)/fuzz/%.o))
	clang -fsanitize=address,undefined,fuzzer $^ $(filter-out -fopenmp,$(LIBS)) -o $@
fuzz-replay: $(FUZZ_TARGETS:%=$(B)/replay/fuzz_%)
fuzz-programs: $(FUZZ_TARGETS:%=$(B)/fuzz/fuzz_%)

test-programs: $(TEST_CPU) $(TEST_SIM) $(TEST_ASAN) $(TEST_CHECK) cpu sim fuzz-replay
test: deps ## every test: cpu, the CUDA kernels through the SIMT layer (plain, ASan, race check), nvcc where found
	@$(MAKE) --no-print-directory -s -j$(JOBS) test-programs
	$(if $(NVCC),@$(MAKE) --no-print-directory -s -j$(JOBS) cuda,@echo "no nvcc here: the cuda build is not compiled")
	@tests/run.sh $(TEST_CPU) $(TEST_SIM) $(TEST_ASAN) $(TEST_CHECK) $(TEST_SCRIPTS)

test-real: deps ## a trained model, random architectures, tokenizers and pictures beside PyTorch (downloads 3 GB once; ten minutes)
	@$(MAKE) --no-print-directory -s -j$(JOBS) $(B)/cpu/stagediff
	tools/test_real.sh $(B)/cpu/stagediff

real: deps ## train dictionaries on a real model over a million tokens of this machine's documentation (downloads 3 GB once; half an hour)
	@$(MAKE) --no-print-directory -s -j$(JOBS) $(B)/cpu/stagediff
	tools/real.sh $(B)/cpu/stagediff

$(B)/cpu/tools/gpu_bundle/compare: $(B)/cpu/tools/gpu_bundle/compare.o $(B)/cpu/tests/e2e/relative_rms.o $(B)/cpu/libhost.a
	$(CXX) $^ $(LIBS) -o $@

# ---------------------------------------------------------------- the rest
deps: ## install what is missing (Debian, Ubuntu; as root or with sudo)
	@tools/deps.sh

# cuda where nvcc and a driver are found, else cpu
EXECUTOR_HERE = $(if $(and $(NVCC),$(wildcard /dev/nvidiactl)),cuda,cpu)
demo: deps ## the main job on the bundled small model: runs/demo/report.html
	@$(MAKE) --no-print-directory -s -j$(JOBS) $(B)/$(EXECUTOR_HERE)/stagediff
	@mkdir -p runs
	$(B)/$(EXECUTOR_HERE)/stagediff run tools/tinyworld/demo.json

bench: deps ## time every kernel and the SAE step on this CPU, beside PyTorch where it is installed
	@$(MAKE) --no-print-directory -s -j$(JOBS) cpu
	bench/run.sh $(B)/cpu/bench

FIXTURES_PYTHON = $(or $(PYTHON),build/tinyworld/venv/bin/python)
fixtures: ## remake the small world and the golden files from seeds (needs Python; downloads PyTorch; minutes with a GPU, many hours without)
	tools/tinyworld/make_world.sh
	@$(MAKE) --no-print-directory -s -j$(JOBS) $(B)/cpu/stagediff
	PYTHON=$(FIXTURES_PYTHON) tools/tinyworld/train_saes.sh tools/tinyworld/world $(B)/cpu/stagediff
	$(FIXTURES_PYTHON) tools/golden/make_models.py tools/tinyworld/world tests/models/golden
	$(FIXTURES_PYTHON) tools/golden/make_executors.py tools/tinyworld/world tests/golden/executors.json
	@echo "golden dictionaries: tools/golden/make_dictionaries.py, which needs the libraries that own the formats (its first lines say how)"

SECONDS_EACH ?= 600
fuzz: ## libFuzzer over every reader of files, SECONDS_EACH=600 of CPU each (needs clang with libFuzzer)
	@command -v clang >/dev/null || { echo "make fuzz: needs clang with libFuzzer: apt-get install clang" >&2; exit 2; }
	@$(MAKE) --no-print-directory -s -j$(JOBS) fuzz-programs
	tests/fuzz/run.sh $(B) $(SECONDS_EACH) $(FUZZ_TARGETS)

gpu-bundle: ## one folder that tests and times everything on a machine with an NVIDIA GPU
	tools/gpu_bundle.sh

lint: ## include direction, SIMT house rules, lengths, format, cppcheck
	@tools/deps.sh lint
	@tools/lint.sh

format: ## clang-format over the tree
	git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp' | xargs clang-format -i

clean: ## remove build/
	rm -rf $(B)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.PHONY: help cpu sim cuda test test-programs fuzz fuzz-replay fuzz-programs deps demo bench fixtures gpu-bundle lint format clean
.SECONDARY:
