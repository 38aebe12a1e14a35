# simt.mk: how to compile kernels (*.cu) for the CPU. Include it from the repository root; every path is relative to it.
#
#   $(eval $(call SIMT_RULES,MODE,DIR))   rules for DIR/%.cu.o from %.cu and DIR/%.o from the runtime's %.cpp; MODE plain, asan or check
#   SIMT_CXX, SIMT_CXXFLAGS, SIMT_SRCS    for rules of one's own in mode plain: compiler, flags of kernels and runtime, runtime
#   $(call SIMT_OBJS,DIR)                 the runtime's objects under DIR: link them into the program
#   SIMT_HOST_FLAGS                       for host C and C++ files that include <cuda_runtime.h>
#   SIMT_LDFLAGS_MODE                     link with $(SIMT_CXX) and these (check must not link libtsan: no -fsanitize=thread here)
#
# plain runs fastest; asan adds AddressSanitizer and UBSan; check finds races, uninitialised reads and accesses out of bounds.
# Environment at run time (tests only): SIMT_ORDER=fwd|rev|rand, SIMT_SEED=n, SIMT_WORKERS=n OS threads (else OMP_NUM_THREADS).
SIMT_CXX ?= g++
SIMT_ARCH ?= -march=native
SIMT_DIR := kernels/simt
SIMT_SRCS := $(addprefix $(SIMT_DIR)/,simt.cpp collective.cpp check.cpp ptx_emu.cpp cudart_emu.cpp)
SIMT_HDRS := $(wildcard $(SIMT_DIR)/*.h $(SIMT_DIR)/*.cuh $(SIMT_DIR)/include/*.h)

SIMT_HOST_FLAGS := -I$(SIMT_DIR)/include
SIMT_WARN := -Wall -Wextra -Wshadow -Wno-unknown-pragmas
# No contraction to fma: results do not depend on the machine. No strict aliasing: kernels read bf16 through uint4.
SIMT_COMMON = -std=c++17 -g -I. $(SIMT_HOST_FLAGS) $(SIMT_ARCH) -fno-strict-aliasing -ffp-contract=off -fopenmp $(SIMT_WARN)
SIMT_SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer

# kernels; a frame larger than the limit could jump over the guard page of a fiber's stack
SIMT_CXXFLAGS_plain = $(SIMT_COMMON) -O2 -Wframe-larger-than=32768
SIMT_CXXFLAGS_asan = $(SIMT_COMMON) -O1 $(SIMT_SAN_asan)
SIMT_CXXFLAGS_check = $(SIMT_COMMON) -O1 -fsanitize=thread
# the runtime
SIMT_RTFLAGS_plain = $(SIMT_COMMON) -O2 -Wconversion
SIMT_RTFLAGS_asan = $(SIMT_COMMON) -O2 -fsanitize=address -fno-omit-frame-pointer
SIMT_RTFLAGS_check = $(SIMT_RTFLAGS_plain)
SIMT_LDFLAGS_plain = -fopenmp
SIMT_LDFLAGS_asan = -fopenmp $(SIMT_SAN_asan)
SIMT_LDFLAGS_check = -fopenmp

SIMT_CXXFLAGS = $(SIMT_CXXFLAGS_plain)

SIMT_OBJS = $(SIMT_SRCS:%.cpp=$(1)/%.o)

define SIMT_RULES
$(2)/%.cu.o: %.cu $$(SIMT_HDRS)
	@mkdir -p $$(@D)
	$$(SIMT_CXX) -x c++ $$(SIMT_CXXFLAGS_$(1)) -MMD -MP -c $$< -o $$@
$(2)/$(SIMT_DIR)/%.o: $(SIMT_DIR)/%.cpp $$(SIMT_HDRS)
	@mkdir -p $$(@D)
	$$(SIMT_CXX) $$(SIMT_RTFLAGS_$(1)) -c $$< -o $$@
endef
