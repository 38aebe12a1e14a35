/* check.h - our own bugs: print file:line, expression and values, abort. Always on. Never for the world's faults
 * (files, config, memory): those return a status with a sentence, see host/error.h. */
#ifndef HOST_CHECK_H
#define HOST_CHECK_H
#include <stdio.h>
#include <stdlib.h>
#define CHECK(cond, ...)                                                                                                                   \
    do {                                                                                                                                   \
        if (!(cond)) {                                                                                                                     \
            fprintf(stderr, "stagediff: bug at %s:%d: %s: ", __FILE__, __LINE__, #cond);                                                   \
            fprintf(stderr, __VA_ARGS__);                                                                                                  \
            fputc('\n', stderr);                                                                                                           \
            abort();                                                                                                                       \
        }                                                                                                                                  \
    } while (0)
#endif
