/* ref_llama.c - the forward pass in double (ref_names.h). */
#include "tests/models/ref_names.h"
#include "models/arena.c"
#include "models/llama.c"
