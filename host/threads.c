/* threads.c - see threads.h. */
#include "host/threads.h"
#include <stdlib.h>
#include <unistd.h>

void threads_wait_asleep(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    execv("/proc/self/exe", argv);
}
