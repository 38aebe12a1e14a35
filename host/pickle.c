/* pickle.c - the stack machine of pickle.h. */
#include "host/pickle.h"
#include "host/file.h"
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PICKLE ((size_t)64 << 20) /* a model's has some 150 bytes per tensor */

struct machine {
    struct pickle *p;
    const char *where;
    const unsigned char *bytes;
    size_t size, at, opcode; /* at: next byte; opcode: where the one at work stands */
    const char *const *globals;
    struct pickle_value *stack, *memo;
    size_t depth, depth_room, memos;
    struct error *err;
};

const char *pickle_kind_name(enum pickle_kind kind) {
    static const char *const names[] = {"None",    "a truth value", "a whole number", "a number", "a text",          "a global",
                                        "a tuple", "a list",        "a dictionary",   "a call",   "a persistent id", "a mark"};
    return names[kind];
}

static int fail_at(struct machine *m, const char *what) { return fail(m->err, "%s: byte %zu: %s", m->where, m->opcode, what); }

/* ---- bytes ---- */
static int take_bytes(struct machine *m, size_t n, const unsigned char **at) {
    if (n > m->size - m->at) return fail_at(m, "the pickle ends inside an opcode; the file is damaged or cut short");
    *at = m->bytes + m->at;
    m->at += n;
    return 0;
}

static int take_number(struct machine *m, int n, uint64_t *value) {
    const unsigned char *at = NULL;
    if (take_bytes(m, (size_t)n, &at)) return -1;
    *value = 0;
    for (int i = n - 1; i >= 0; i--) *value = *value << 8 | at[i];
    return 0;
}

static int take_line(struct machine *m, const char **text, size_t *n) {
    const unsigned char *start = m->bytes + m->at, *end = memchr(start, '\n', m->size - m->at);
    if (!end) return fail_at(m, "the pickle ends inside an opcode; the file is damaged or cut short");
    *text = (const char *)start;
    *n = (size_t)(end - start);
    m->at += *n + 1;
    return 0;
}

/* ---- stack ---- */
static int push(struct machine *m, struct pickle_value v) {
    if (m->depth == m->depth_room) {
        m->depth_room = 2 * m->depth_room + 64;
        m->stack = memory_grow(m->stack, m->depth_room, sizeof *m->stack);
    }
    m->stack[m->depth++] = v;
    return 0;
}

static int pop(struct machine *m, struct pickle_value *v) {
    if (!m->depth || m->stack[m->depth - 1].kind == PICKLE_MARK) return fail_at(m, "an opcode finds no value on the stack");
    *v = m->stack[--m->depth];
    return 0;
}

static struct pickle_list *new_list(struct machine *m) {
    struct pickle_list *l = memory_take(1, sizeof *l);
    l->at = m->opcode;
    l->next = m->p->lists;
    return m->p->lists = l;
}

static void append(struct pickle_list *l, const struct pickle_value *from, size_t n) {
    if (n > l->capacity - l->n) {
        l->capacity = l->n + n < 4 ? l->n + n : 2 * (l->n + n);
        l->items = memory_grow(l->items, l->capacity, sizeof *l->items);
    }
    if (n) memcpy(l->items + l->n, from, n * sizeof *from);
    l->n += n;
}

/* The values above the topmost mark; both leave the stack (the values stay readable until the next push). */
static int pop_to_mark(struct machine *m, const struct pickle_value **from, size_t *n) {
    size_t at = m->depth;
    while (at && m->stack[at - 1].kind != PICKLE_MARK) at--;
    if (!at) return fail_at(m, "an opcode finds no mark on the stack");
    *from = m->stack + at;
    *n = m->depth - at;
    m->depth = at - 1;
    return 0;
}

static int push_list(struct machine *m, enum pickle_kind kind, const struct pickle_value *from, size_t n) {
    struct pickle_list *l = new_list(m);
    append(l, from, n);
    return push(m, (struct pickle_value){.kind = kind, .list = l});
}

static int push_tuple(struct machine *m, size_t n) {
    struct pickle_value items[3];
    for (size_t i = n; i > 0; i--)
        if (pop(m, &items[i - 1])) return -1;
    return push_list(m, PICKLE_TUPLE, items, n);
}

/* Adds to the list or dictionary that lies on top once `n` values are gone. */
static int extend(struct machine *m, enum pickle_kind kind, const struct pickle_value *from, size_t n) {
    if (!m->depth || m->stack[m->depth - 1].kind != kind) return fail_at(m, "items are set in what is no list or dictionary");
    if (kind == PICKLE_DICT && n % 2) return fail_at(m, "a dictionary gets a key without a value");
    append(m->stack[m->depth - 1].list, from, n);
    return 0;
}

/* ---- memo ---- */
static int remember(struct machine *m, uint64_t index) {
    if (!m->depth || m->stack[m->depth - 1].kind == PICKLE_MARK) return fail_at(m, "an opcode finds no value on the stack");
    if (index > m->memos) { /* Python numbers them from 0 without gaps */
        char text[96];
        snprintf(text, sizeof text, "memo %llu is set, but only %zu came before it", (unsigned long long)index, m->memos);
        return fail_at(m, text);
    }
    if (index == m->memos) {
        if (!(m->memos & (m->memos - 1))) m->memo = memory_grow(m->memo, m->memos ? 2 * m->memos : 1, sizeof *m->memo);
        m->memos++;
    }
    m->memo[index] = m->stack[m->depth - 1];
    return 0;
}

static int recall(struct machine *m, uint64_t index) {
    if (index >= m->memos) return fail_at(m, "a memo is read that was never set");
    return push(m, m->memo[index]);
}

/* ---- opcodes with a rule of their own ---- */
static int push_global(struct machine *m) {
    const char *module = "", *name = "";
    size_t a = 0, b = 0;
    if (take_line(m, &module, &a) || take_line(m, &name, &b)) return -1;
    for (int i = 0; m->globals[i]; i++) {
        const char *g = m->globals[i];
        if (strlen(g) == a + 1 + b && !memcmp(g, module, a) && g[a] == '.' && !memcmp(g + a + 1, name, b))
            return push(m, (struct pickle_value){.kind = PICKLE_GLOBAL, .whole = i});
    }
    return fail(m->err,
                "%s: byte %zu: the global %.*s.%.*s is refused; only dictionaries of tensors are read, and nothing is executed: keep the "
                "state_dict alone, or convert the file to safetensors",
                m->where, m->opcode, a < 80 ? (int)a : 80, module, b < 80 ? (int)b : 80, name);
}

/* global, arguments -> the call, written down. collections.OrderedDict() is a dictionary. */
static int push_call(struct machine *m) {
    struct pickle_value pair[2];
    if (pop(m, &pair[1]) || pop(m, &pair[0])) return -1;
    if (pair[0].kind != PICKLE_GLOBAL || pair[1].kind != PICKLE_TUPLE) return fail_at(m, "a call of what is no global with a tuple");
    if (strcmp(m->globals[pair[0].whole], "collections.OrderedDict") != 0) return push_list(m, PICKLE_CALL, pair, 2);
    if (pair[1].list->n) return fail_at(m, "collections.OrderedDict with arguments is not read");
    return push_list(m, PICKLE_DICT, NULL, 0);
}

/* A state set on a dictionary (a state_dict's _metadata) is dropped. */
static int build(struct machine *m) {
    struct pickle_value state;
    if (pop(m, &state)) return -1;
    if (!m->depth || m->stack[m->depth - 1].kind != PICKLE_DICT) return fail_at(m, "a state is set on what is no dictionary (BUILD)");
    return 0;
}

/* Two's complement, little endian, any length; those beyond 8 bytes are nothing that a tensor has. */
static int push_long(struct machine *m) {
    uint64_t n = 0;
    const unsigned char *at = NULL;
    if (take_number(m, 1, &n) || take_bytes(m, (size_t)n, &at)) return -1;
    if (n > 8) return fail_at(m, "a whole number of more than 64 bits");
    uint64_t value = n && at[n - 1] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = (size_t)n; i > 0; i--) value = value << 8 | at[i - 1];
    return push(m, (struct pickle_value){.kind = PICKLE_INT, .whole = (int64_t)value});
}

static int push_float(struct machine *m) { /* big endian */
    const unsigned char *at = NULL;
    if (take_bytes(m, 8, &at)) return -1;
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) bits = bits << 8 | at[i];
    struct pickle_value v = {.kind = PICKLE_FLOAT};
    memcpy(&v.real, &bits, 8);
    return push(m, v);
}

static int push_text(struct machine *m) {
    uint64_t n = 0;
    const unsigned char *at = NULL;
    if (take_number(m, 4, &n) || take_bytes(m, (size_t)n, &at)) return -1;
    return push(m, (struct pickle_value){.kind = PICKLE_TEXT, .n = (uint32_t)n, .text = (const char *)at});
}

/* One opcode; *done after STOP. */
static int step(struct machine *m, unsigned op, bool *done) {
    uint64_t n = 0;
    size_t count = 0;
    struct pickle_value v = {0}, pair[2] = {0};
    const struct pickle_value *from = NULL;
    switch (op) {
    case 0x80: /* PROTO */
        if (take_number(m, 1, &n)) return -1;
        return n == 2 ? 0 : fail_at(m, "a pickle of another protocol than torch.save's 2; save it again with torch.save");
    case '(': /* MARK */
        return push(m, (struct pickle_value){.kind = PICKLE_MARK});
    case '}': /* EMPTY_DICT */
        return push_list(m, PICKLE_DICT, NULL, 0);
    case ']': /* EMPTY_LIST */
        return push_list(m, PICKLE_LIST, NULL, 0);
    case ')': /* EMPTY_TUPLE */
        return push_tuple(m, 0);
    case 0x85: /* TUPLE1 */
        return push_tuple(m, 1);
    case 0x86: /* TUPLE2 */
        return push_tuple(m, 2);
    case 0x87: /* TUPLE3 */
        return push_tuple(m, 3);
    case 't': { /* TUPLE */
        if (pop_to_mark(m, &from, &count)) return -1;
        return push_list(m, PICKLE_TUPLE, from, count);
    }
    case 'a': /* APPEND */
        return pop(m, &v) ? -1 : extend(m, PICKLE_LIST, &v, 1);
    case 'e': /* APPENDS */
        return pop_to_mark(m, &from, &count) ? -1 : extend(m, PICKLE_LIST, from, count);
    case 's': /* SETITEM */
        return pop(m, &pair[1]) || pop(m, &pair[0]) ? -1 : extend(m, PICKLE_DICT, pair, 2);
    case 'u': /* SETITEMS */
        return pop_to_mark(m, &from, &count) ? -1 : extend(m, PICKLE_DICT, from, count);
    case 'q': /* BINPUT */
    case 'r': /* LONG_BINPUT */
        return take_number(m, op == 'q' ? 1 : 4, &n) ? -1 : remember(m, n);
    case 0x94: /* MEMOIZE */
        return remember(m, m->memos);
    case 'h': /* BINGET */
    case 'j': /* LONG_BINGET */
        return take_number(m, op == 'h' ? 1 : 4, &n) ? -1 : recall(m, n);
    case 'X': /* BINUNICODE */
        return push_text(m);
    case 'J': /* BININT */
    case 'K': /* BININT1 */
    case 'M': /* BININT2 */
        if (take_number(m, op == 'J' ? 4 : op == 'K' ? 1 : 2, &n)) return -1;
        return push(m, (struct pickle_value){.kind = PICKLE_INT, .whole = op == 'J' ? (int32_t)(uint32_t)n : (int64_t)n});
    case 0x8a: /* LONG1 */
        return push_long(m);
    case 'G': /* BINFLOAT */
        return push_float(m);
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return push(m, (struct pickle_value){.kind = PICKLE_BOOL, .whole = op == 0x88});
    case 'N': /* NONE */
        return push(m, (struct pickle_value){.kind = PICKLE_NONE});
    case 'c': /* GLOBAL */
        return push_global(m);
    case 'Q': /* BINPERSID */
        return pop(m, &v) ? -1 : push_list(m, PICKLE_PERSISTENT, &v, 1);
    case 'R': /* REDUCE */
        return push_call(m);
    case 'b': /* BUILD */
        return build(m);
    case '.': /* STOP */
        *done = true;
        return pop(m, &m->p->value);
    default: {
        char text[128];
        snprintf(text, sizeof text, "the pickle opcode 0x%02x is refused; only those of a dictionary of tensors are read", op);
        return fail_at(m, text);
    }
    }
}

int pickle_read(struct pickle *p, const char *where, const unsigned char *bytes, size_t size, const char *const *globals,
                struct error *err) {
    struct machine m = {.p = p, .where = where, .bytes = bytes, .size = size, .globals = globals, .err = err};
    bool done = false;
    int rc = 0;
    *p = (struct pickle){0};
    if (size > MAX_PICKLE) return fail(err, "%s: a pickle of %zu bytes; at most %zu are read", where, size, MAX_PICKLE);
    while (!rc && !done) {
        const unsigned char *op = NULL;
        m.opcode = m.at;
        rc = take_bytes(&m, 1, &op) || step(&m, *op, &done) ? -1 : 0;
    }
    free(m.stack);
    free(m.memo);
    if (rc) pickle_free(p);
    return rc;
}

void pickle_free(struct pickle *p) {
    for (struct pickle_list *l = p->lists, *next; l; l = next) {
        next = l->next;
        free(l->items);
        free(l);
    }
    *p = (struct pickle){0};
}
