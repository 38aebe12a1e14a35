# simt.mk: builds and runs the SIMT layer's own tests. From the repository root: make -f tests/simt/simt.mk test-simt
# (or included by the Makefile). SIMT_TEST_DIR is where everything goes.
ifndef SIMT_SRCS
include kernels/simt/simt.mk
endif
SIMT_TEST_DIR ?= build/simt
SIMT_TEST_PROGRAMS := $(foreach m,plain asan check,$(SIMT_TEST_DIR)/$m/unit $(SIMT_TEST_DIR)/$m/bug_kernels)

define SIMT_TEST_RULES
$(call SIMT_RULES,$(1),$(SIMT_TEST_DIR)/$(1))
$(SIMT_TEST_DIR)/$(1)/%: $(SIMT_TEST_DIR)/$(1)/tests/simt/%.cu.o $(call SIMT_OBJS,$(SIMT_TEST_DIR)/$(1))
	$$(SIMT_CXX) $$^ $$(SIMT_LDFLAGS_$(1)) -o $$@
endef
$(foreach m,plain asan check,$(eval $(call SIMT_TEST_RULES,$m)))
.SECONDARY: $(foreach m,plain asan check,$(foreach t,unit bug_kernels,$(SIMT_TEST_DIR)/$m/tests/simt/$t.cu.o) $(call SIMT_OBJS,$(SIMT_TEST_DIR)/$m))

.PHONY: test-simt test-simt-nvcc
test-simt: $(SIMT_TEST_PROGRAMS) ## the SIMT layer's own tests: planted bugs, fragment layouts, intrinsics
	SIMT_CXX="$(SIMT_CXX)" tests/simt/run.sh $(SIMT_TEST_DIR)

# The same sources must be clean CUDA. unit from this build runs on a GPU and tests the emulation's claims there.
SIMT_NVCC ?= nvcc
test-simt-nvcc: ## compile the SIMT tests with nvcc for sm_80, sm_90, sm_100
	@mkdir -p $(SIMT_TEST_DIR)/nvcc
	for a in 80 90 100; do for t in unit bug_kernels; do \
	  $(SIMT_NVCC) -std=c++17 -arch=sm_$$a -Werror all-warnings -I. -c tests/simt/$$t.cu -o $(SIMT_TEST_DIR)/nvcc/$$t.$$a.o || exit 1; done; done

-include $(foreach m,plain asan check,$(wildcard $(SIMT_TEST_DIR)/$m/tests/simt/*.d))
