/* options.h - one table per command (name, type, bounds, default, help): parser, --help, range errors and the dump stored
 * with a run all come from it. Every command has --help, --threads N, --quiet besides its own. */
#ifndef HOST_OPTIONS_H
#define HOST_OPTIONS_H
#include "host/error.h"
#include <stdbool.h>
enum option_type { OPTION_FLAG, OPTION_INT, OPTION_REAL, OPTION_TEXT, OPTION_LIST /* may be repeated */ };
struct option {
    const char *name; /* "--batch"; a positional argument has no dashes: "DIR" */
    enum option_type type;
    double low, high;     /* bounds of INT and REAL */
    const char *fallback; /* default as text, NULL: none */
    bool required;
    const char *help;
    const char *value; /* what --help calls the value: "DIR", "FILE"; NULL: by the type */
    /* filled by options_parse */
    bool given;
    double number;     /* INT, REAL; FLAG: 0 or 1 */
    const char *text;  /* TEXT */
    const char **list; /* LIST, n_list entries */
    int n_list;
};
struct command {
    const char *name, *summary, *description;                  /* description: paragraphs and examples of --help */
    struct option *options;                                    /* ends with name == NULL */
    int (*run)(const struct command *self, struct error *err); /* exit status: 0, or -1 with err for status 2, or 128+signal */
    int threads;                                               /* --threads, 0: all */
    bool quiet;
};
/* argv[0] is the first word after the command's name. LIST values borrow argv; the list itself lives as long as the program.
 * A value follows its option as the next word or after '='; "--" ends the options. 0: parsed. 1: help was printed. -1: err. Unknown options
 * name the nearest valid one. */
int options_parse(struct command *cmd, int argc, char **argv, struct error *err);
const struct option *option(const struct command *cmd, const char *name); /* CHECKs that it exists */
/* The candidate that `word` was most likely meant to be (edit distance), NULL when none is near. NULL-terminated list. */
const char *nearest_name(const char *word, const char *const *candidates);
extern struct command *const commands[]; /* NULL-terminated; host/commands.c */
#endif
