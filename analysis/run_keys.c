/* run_keys.c - reads an object of CONFIG.json by a table of keys: an unknown key, a wrong type or a value out of range is an error that
 * names the file, the key and what was expected. */
#include "analysis/run_keys.h"
#include "host/file.h"
#include "host/options.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char *dot(const char *where) { return *where ? "." : ""; }

int keys_bad_value(const struct reader *r, const char *where, const char *name, const json_t *v, const char *expected) {
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    fail(r->err, "%s: \"%s%s%s\": expected %s, found %.80s", r->file, where, dot(where), name, expected, text ? text : "something else");
    free(text);
    return -1;
}

static int read_number(const struct reader *r, const char *where, const struct key *k, const json_t *v, double *x) {
    char expected[128];
    bool whole = k->type != KEY_REAL;
    snprintf(expected, sizeof expected, "%s from %.10g to %.10g", whole ? "a whole number" : "a number", k->low, k->high);
    *x = k->fallback;
    if (!v) return 0;
    if (!json_is_number(v) || !isfinite(json_number_value(v))) return keys_bad_value(r, where, k->name, v, expected);
    *x = json_number_value(v);
    if (*x < k->low || *x > k->high || (whole && *x != floor(*x))) return keys_bad_value(r, where, k->name, v, expected);
    return 0;
}

static int read_choice(const struct reader *r, const char *where, const struct key *k, const json_t *v, int *index) {
    char expected[128] = "one of";
    *index = (int)k->fallback;
    if (!v) return 0;
    for (int i = 0; k->choices[i]; i++) {
        if (json_is_string(v) && strcmp(json_string_value(v), k->choices[i]) == 0) {
            *index = i;
            return 0;
        }
        size_t used = strlen(expected);
        snprintf(expected + used, sizeof expected - used, "%s \"%s\"", i ? "," : "", k->choices[i]);
    }
    return keys_bad_value(r, where, k->name, v, expected);
}

/* name seen from folder. The folder is real (no links in it), so leading "../" can be taken off as text. */
static char *resolved_path(const char *folder, const char *name) {
    char *base = memory_string(folder), *slash;
    while (!strncmp(name, "../", 3) && (slash = strrchr(base, '/')) && slash > base) {
        *slash = 0;
        name += 3;
    }
    char *path = path_join(base, name);
    free(base);
    return path;
}

static int read_text(const struct reader *r, const char *where, const struct key *k, const json_t *v, char **text, json_t **shown) {
    const char *expected = k->type == KEY_PATH ? "a path" : "a text";
    if (v && (!json_is_string(v) || !*json_string_value(v))) return keys_bad_value(r, where, k->name, v, expected);
    *text = !v ? NULL : k->type == KEY_PATH ? resolved_path(r->folder, json_string_value(v)) : memory_string(json_string_value(v));
    *shown = v ? json_string(*text) : json_null();
    return *shown ? 0 : keys_bad_value(r, where, k->name, v, "a path in UTF-8");
}

/* Reads or defaults one key; *shown is what the resolved configuration says. */
static int read_key(const struct reader *r, void *into, const char *where, const struct key *k, const json_t *v, json_t **shown) {
    void *at = (char *)into + k->offset;
    double x = 0;
    int index = 0;
    *shown = NULL;
    if (v && json_is_null(v)) v = NULL;
    if (!v && k->required)
        return fail(r->err, "%s: \"%s%s%s\" is missing; expected a %s", r->file, where, dot(where), k->name,
                    k->type == KEY_PATH ? "path" : "text");
    switch (k->type) {
    case KEY_PATH:
    case KEY_TEXT:
        return read_text(r, where, k, v, at, shown);
    case KEY_BOOL:
        if (v && !json_is_boolean(v)) return keys_bad_value(r, where, k->name, v, "true or false");
        *(bool *)at = v ? json_is_true(v) : k->fallback != 0;
        *shown = json_boolean(*(bool *)at);
        return 0;
    case KEY_CHOICE:
    case KEY_SWITCH:
        if (read_choice(r, where, k, v, &index)) return -1;
        if (k->type == KEY_CHOICE)
            *(int *)at = index;
        else
            *(bool *)at = index != 0;
        *shown = json_string(k->choices[index]);
        return 0;
    case KEY_OTHER:
        return 0;
    case KEY_REAL:
    case KEY_INT:
    case KEY_LONG:
    case KEY_SEED:
        break;
    }
    if (read_number(r, where, k, v, &x)) return -1;
    if (k->type == KEY_INT)
        *(int *)at = (int)x;
    else if (k->type == KEY_LONG)
        *(long *)at = (long)x;
    else if (k->type == KEY_SEED)
        *(unsigned long *)at = (unsigned long)x;
    else
        *(double *)at = x;
    *shown = k->type == KEY_REAL ? json_real(x) : json_integer((json_int_t)x);
    return 0;
}

/* Every key of `o` must stand in the table. */
static int check_names(const struct reader *r, const struct key *keys, size_t n, const char *where, const json_t *o) {
    const char **names = memory_take(n + 1, sizeof *names), *name;
    json_t *value;
    int status = 0;
    for (size_t i = 0; i < n; i++) names[i] = keys[i].name;
    json_object_foreach((json_t *)(uintptr_t)o, name, value) {
        size_t i = 0;
        while (i < n && strcmp(names[i], name)) i++;
        if (i < n) continue;
        const char *near = nearest_name(name, names);
        status = fail(r->err, "%s: unknown key \"%s%s%.60s\"%s%s%s; docs/config.md lists all", r->file, where, dot(where), name,
                      near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
        break;
    }
    free(names);
    return status;
}

int keys_read(const struct reader *r, void *into, const struct key *keys, size_t n, const char *where, const json_t *o, json_t *shown) {
    if (o && json_is_null(o)) o = NULL;
    if (o && !json_is_object(o)) return fail(r->err, "%s: \"%s\": expected an object", r->file, where);
    if (o && check_names(r, keys, n, where, o)) return -1;
    for (size_t i = 0; i < n; i++) {
        json_t *one = NULL;
        int status = read_key(r, into, where, &keys[i], o ? json_object_get(o, keys[i].name) : NULL, &one);
        if (one) json_object_set_new(shown, keys[i].name, one);
        if (status) return -1;
    }
    return 0;
}
