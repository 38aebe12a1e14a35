/* pickle.h - a Python pickle as a tree of inert values; nothing is ever imported, called or executed. Only the opcodes that protocol 2
 * needs for dictionaries of tensors are known; any other opcode, and any global that the caller does not list, is refused by name and
 * byte. (Python's pickletools.py has the format; formats.md 4.x the subset) */
#ifndef HOST_PICKLE_H
#define HOST_PICKLE_H
#include "host/error.h"
#include <stddef.h>
#include <stdint.h>

enum pickle_kind {
    PICKLE_NONE,
    PICKLE_BOOL,       /* whole */
    PICKLE_INT,        /* whole */
    PICKLE_FLOAT,      /* real */
    PICKLE_TEXT,       /* text, n bytes; UTF-8 is not checked */
    PICKLE_GLOBAL,     /* whole: which of the caller's list */
    PICKLE_TUPLE,      /* list */
    PICKLE_LIST,       /* list */
    PICKLE_DICT,       /* list: key, value, key, value...; an OrderedDict is one */
    PICKLE_CALL,       /* list: the global, its argument tuple; never called */
    PICKLE_PERSISTENT, /* list: the id */
    PICKLE_MARK        /* inside the machine only */
};
struct pickle_value {
    enum pickle_kind kind;
    uint32_t n;
    union {
        int64_t whole;
        double real;
        const char *text;
        struct pickle_list *list;
    };
};
struct pickle_list { /* may be shared and may contain itself */
    struct pickle_value *items;
    size_t n, capacity;
    size_t at; /* byte of the opcode that made it, for messages */
    struct pickle_list *next;
};
struct pickle { /* owns the lists; texts borrow the bytes */
    struct pickle_value value;
    struct pickle_list *lists;
};
const char *pickle_kind_name(enum pickle_kind kind);
/* where: prefix of messages. globals: "module.name", ends with NULL. Memory: at most some 60 bytes per byte of the pickle. */
int pickle_read(struct pickle *p, const char *where, const unsigned char *bytes, size_t size, const char *const *globals,
                struct error *err);
void pickle_free(struct pickle *p); /* a zeroed struct is fine */
#endif
