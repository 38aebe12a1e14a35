# stagediff - build, tests, demo. `make` alone prints the targets.
# Three executors from the same host code: cpu (op.c), sim (op.cu run on the CPU by kernels/simt), cuda (op.cu by nvcc).

.DEFAULT_GOAL := help
SHELL := /bin/bash
CC  ?= gcc
CXX ?= g++
JOBS ?= $(shell nproc)
CUDA_HOME ?= /usr/local/cuda
ARCH_FLAGS ?= -march=native
include kernels/simt/simt.mk

WARN   := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror
CFLAGS := -std=c11 -O3 $(ARCH_FLAGS) -g -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -I. -D_GNU_SOURCE $(WARN) $(EXTRA_CFLAGS)
PKGS   := jansson sqlite3 libjpeg libpng libpcre2-8 libzip zlib openblas
LIBS    = $(shell pkg-config --libs $(PKGS)) -ldnnl -fopenmp -lm
INCS   := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)

HOST_C := $(wildcard host/*.c models/*.c sae/*.c analysis/*.c)
OP_C   := $(wildcard kernels/*.c)
OP_CU  := $(wildcard kernels/*.cu)
LIB_C  := $(filter-out host/main.c,$(HOST_C))

# ---- cpu: act_t = float ----
CPU_LIB_O := $(LIB_C:%.c=build/cpu/%.o) $(OP_C:%.c=build/cpu/%.o)
# ---- ref: the CPU ops once more in double; device.c is no op ----
REF_O  := $(patsubst %.c,build/ref/%.o,$(filter-out kernels/device.c,$(OP_C)))
# ---- sim: act_t = bf16, kernels through the SIMT layer ----
SIM_LIB_O := $(LIB_C:%.c=build/sim/%.o) $(OP_CU:%.cu=build/sim/%.cu.o) $(SIMT_SRCS:%.cpp=build/sim/%.o)
# ---- cuda ----
CUDA_LIB_O := $(LIB_C:%.c=build/cuda/%.o) $(OP_CU:%.cu=build/cuda/%.cu.o)
NVCC ?= $(CUDA_HOME)/bin/nvcc
GENCODE ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_100,code=sm_100 -gencode arch=compute_100,code=compute_100
NVCCFLAGS := -std=c++17 -O3 -lineinfo -I. -DSTAGEDIFF_BF16 -Werror all-warnings -Xptxas -warn-spills -Xcompiler -Wall,-Wextra
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -lcublasLt -lcudart -lstdc++

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

cpu: build/cpu/stagediff build/cpu/bench ## build/cpu/stagediff and bench: runs anywhere
sim: build/sim/stagediff build/sim/bench ## build/sim/...: the CUDA kernels executed on the CPU (slow; for tests)
cuda: build/cuda/stagediff build/cuda/bench ## build/cuda/...: needs nvcc and cuBLASLt

build/cpu/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(INCS) -MMD -MP -c $< -o $@
build/ref/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DSTAGEDIFF_REF $(INCS) -MMD -MP -c $< -o $@
build/sim/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DSTAGEDIFF_BF16 -DSTAGEDIFF_SIM $(INCS) -MMD -MP -c $< -o $@
build/sim/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(SIMT_CXX) $(SIMT_CXXFLAGS) -DSTAGEDIFF_BF16 -DSTAGEDIFF_SIM $(INCS) -MMD -MP -x c++ -c $< -o $@
build/sim/%.o: %.cpp
	@mkdir -p $(@D)
	$(SIMT_CXX) $(SIMT_CXXFLAGS) -MMD -MP -c $< -o $@
build/cuda/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DSTAGEDIFF_BF16 -DSTAGEDIFF_CUDA $(INCS) -MMD -MP -c $< -o $@
build/cuda/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(GENCODE) -MMD -MP -c $< -o $@

build/cpu/libstagediff.a: $(CPU_LIB_O)
	@rm -f $@ && ar rcs $@ $^
build/ref/libref.a: $(REF_O)
	@rm -f $@ && ar rcs $@ $^
build/sim/libstagediff.a: $(SIM_LIB_O)
	@rm -f $@ && ar rcs $@ $^
build/cuda/libstagediff.a: $(CUDA_LIB_O)
	@rm -f $@ && ar rcs $@ $^
build/%/stagediff: build/%/host/main.o build/%/libstagediff.a
	$(CXX) $^ $(LIBS) $(if $(filter cuda,$*),$(CUDA_LIBS)) -o $@
build/%/bench: build/%/bench/bench.o build/%/libstagediff.a
	$(CXX) $^ $(LIBS) $(if $(filter cuda,$*),$(CUDA_LIBS)) -o $@

# ---- tests: tests/<area>/test_*.c, one cmocka program each. tests/kernels and tests/sim run on cpu and sim, the rest on cpu ----
TEST_CPU := $(patsubst tests/%.c,build/cpu/tests/%,$(wildcard tests/*/test_*.c))
TEST_SIM := $(patsubst tests/%.c,build/sim/tests/%,$(wildcard tests/kernels/test_*.c))
build/%/tests: ;
$(TEST_CPU): build/cpu/tests/%: build/cpu/tests/%.o build/cpu/libstagediff.a build/ref/libref.a
	$(CXX) $^ $(LIBS) -lcmocka -o $@
$(TEST_SIM): build/sim/tests/%: build/sim/tests/%.o build/sim/libstagediff.a build/ref/libref.a
	$(CXX) $^ $(LIBS) -lcmocka -o $@

-include $(shell find build -name '*.d' 2>/dev/null)
.PHONY: help cpu sim cuda
.SECONDARY:
