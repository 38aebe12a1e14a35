/* ref_llama_backward.c - the backward pass in double (ref_names.h). */
#include "tests/models/ref_names.h"
#include "models/llama_backward.c"
