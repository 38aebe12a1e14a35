/* options.c - the parser, the range errors and --help, all from one table per command. */
#include "host/options.h"
#include "host/file.h"
#include "host/check.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct option common[] = {
    {.name = "--threads", .type = OPTION_INT, .low = 0, .high = 4096, .fallback = "0", .help = "threads of the CPU build; 0: one per core"},
    {.name = "--quiet", .type = OPTION_FLAG, .help = "no progress and no notes on stderr, errors only"},
    {.name = "--help", .type = OPTION_FLAG, .help = "this page"},
    {.name = NULL},
};

/* ---- names ---- */
static int min_int(int a, int b) { return a < b ? a : b; }

/* Levenshtein distance; words of our tables are short, what the user typed is cut at 63. */
static int edit_distance(const char *a, const char *b) {
    int row[64], n = min_int((int)strlen(b), 63);
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 0; i < 63 && a[i]; i++) {
        int diagonal = row[0];
        row[0] = i + 1;
        for (int j = 0; j < n; j++) {
            int old = row[j + 1];
            row[j + 1] = min_int(min_int(row[j] + 1, old + 1), diagonal + (a[i] != b[j]));
            diagonal = old;
        }
    }
    return row[n];
}

const char *nearest_name(const char *word, const char *const *candidates) {
    const char *best = NULL;
    int best_distance = 0;
    for (; *candidates; candidates++) {
        int d = edit_distance(word, *candidates);
        size_t shared = 0;
        while (word[shared] && word[shared] == (*candidates)[shared]) shared++;
        if (!word[shared] && shared > 2) /* an abbreviation */
            d = min_int(d, 1);
        int limit = (int)strlen(*candidates) / 2 + 1;
        if (d <= limit && (!best || d < best_distance)) {
            best = *candidates;
            best_distance = d;
        }
    }
    return best;
}

static bool is_positional(const struct option *o) { return o->name[0] != '-'; }

static struct option *find(struct command *cmd, const char *name, size_t length) {
    for (struct option *table = cmd->options; table; table = table == common ? NULL : common)
        for (struct option *o = table; o->name; o++)
            if (!is_positional(o) && strlen(o->name) == length && !memcmp(o->name, name, length)) return o;
    return NULL;
}

static int unknown_option(const struct command *cmd, const char *word, size_t length, struct error *err) {
    const char *names[256];
    size_t n = 0;
    for (const struct option *o = cmd->options; o->name && n < 250; o++)
        if (!is_positional(o)) names[n++] = o->name;
    for (const struct option *o = common; o->name; o++) names[n++] = o->name;
    names[n] = NULL;
    char typed[64];
    snprintf(typed, sizeof typed, "%.*s", (int)(length < 60 ? length : 60), word);
    const char *near = nearest_name(typed, names);
    if (near)
        return fail(err, "%s: unknown option %s; did you mean %s? (stagediff %s --help lists all)", cmd->name, typed, near, cmd->name);
    return fail(err, "%s: unknown option %s; stagediff %s --help lists all", cmd->name, typed, cmd->name);
}

/* ---- values ---- */
static int set_number(const struct command *cmd, struct option *o, const char *text, struct error *err) {
    char *end;
    errno = 0;
    const char *what = o->type == OPTION_INT ? "a whole number" : "a number";
    double value;
    if (o->type == OPTION_INT) {
        long long whole = strtoll(text, &end, 10);
        value = (double)whole;
    } else {
        value = strtod(text, &end);
    }
    if (end == text || *end || !isfinite(value))
        return fail(err, "%s: %s needs %s from %.10g to %.10g, found '%s'", cmd->name, o->name, what, o->low, o->high, text);
    if (value < o->low || value > o->high)
        return fail(err, "%s: %s must be from %.10g to %.10g, found %s; the nearest valid value is %.10g", cmd->name, o->name, o->low,
                    o->high, text, value < o->low ? o->low : o->high);
    o->number = value;
    o->text = text;
    return 0;
}

static int set_value(const struct command *cmd, struct option *o, const char *text, struct error *err) {
    if (o->given && o->type != OPTION_LIST && o->type != OPTION_FLAG)
        return fail(err, "%s: %s is given twice (%s and %s); give it once", cmd->name, o->name, o->text ? o->text : "?", text);
    o->given = true;
    switch (o->type) {
    case OPTION_FLAG:
        o->number = 1;
        return 0;
    case OPTION_INT:
    case OPTION_REAL:
        return set_number(cmd, o, text, err);
    case OPTION_TEXT:
        o->text = text;
        return 0;
    case OPTION_LIST:
        o->list = memory_grow(o->list, (size_t)o->n_list + 1, sizeof *o->list);
        o->list[o->n_list++] = text;
        return 0;
    }
    return 0;
}

static void set_defaults(struct command *cmd, struct option *table) {
    for (struct option *o = table; o->name; o++) {
        o->given = false;
        o->number = 0;
        o->text = NULL;
        free(o->list);
        o->list = NULL;
        o->n_list = 0;
        if (!o->fallback) continue;
        struct error err;
        if (o->type == OPTION_INT || o->type == OPTION_REAL)
            CHECK(!set_number(cmd, o, o->fallback, &err), "default of %s %s: %s", cmd->name, o->name, err.text);
        o->text = o->fallback;
    }
}

/* ---- help ---- */
static void describe(const struct option *o) {
    char left[64];
    const char *value = o->value ? o->value : o->type == OPTION_INT ? "N" : o->type == OPTION_REAL ? "X" : "TEXT";
    if (o->type == OPTION_FLAG || is_positional(o))
        snprintf(left, sizeof left, "%s", o->name);
    else
        snprintf(left, sizeof left, "%s %s", o->name, value);
    printf("  %-26s %s", left, o->help ? o->help : "");
    if (o->type == OPTION_LIST) printf(" (may be repeated)");
    if (o->required && !is_positional(o)) printf(" (required)");
    if (o->fallback) printf(" [default %s]", o->fallback);
    putchar('\n');
}

static void print_help(const struct command *cmd) {
    printf("stagediff %s: %s\n\nUsage: stagediff %s", cmd->name, cmd->summary, cmd->name);
    bool positional = false;
    for (const struct option *o = cmd->options; o->name; o++)
        if (is_positional(o)) {
            printf(o->required ? " %s%s" : " [%s%s]", o->name, o->type == OPTION_LIST ? "..." : "");
            positional = true;
        }
    printf(" [options]\n");
    if (positional) {
        printf("\n");
        for (const struct option *o = cmd->options; o->name; o++)
            if (is_positional(o)) describe(o);
    }
    printf("\nOptions:\n");
    for (const struct option *o = cmd->options; o->name; o++)
        if (!is_positional(o)) describe(o);
    for (const struct option *o = common; o->name; o++) describe(o);
    if (cmd->description && *cmd->description)
        printf("\n%s%s", cmd->description, cmd->description[strlen(cmd->description) - 1] == '\n' ? "" : "\n");
}

/* ---- parsing ---- */
static struct option *next_positional(struct command *cmd) {
    for (struct option *o = cmd->options; o->name; o++)
        if (is_positional(o) && (!o->given || o->type == OPTION_LIST)) return o;
    return NULL;
}

static int parse_word(struct command *cmd, int *i, int argc, char **argv, bool *only_positional, struct error *err) {
    const char *word = argv[*i];
    if (!*only_positional && !strcmp(word, "--")) {
        *only_positional = true;
        return 0;
    }
    if (*only_positional || word[0] != '-' || !word[1]) {
        struct option *o = next_positional(cmd);
        if (!o)
            return fail(err, "%s: unexpected argument '%s'; options begin with --, see stagediff %s --help", cmd->name, word, cmd->name);
        return set_value(cmd, o, word, err);
    }
    const char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    struct option *o = find(cmd, word, length);
    if (!o) return unknown_option(cmd, word, length, err);
    if (o->type == OPTION_FLAG) {
        if (equals) return fail(err, "%s: %s takes no value, found '%s'", cmd->name, o->name, equals + 1);
        return set_value(cmd, o, "", err);
    }
    if (equals) return set_value(cmd, o, equals + 1, err);
    if (*i + 1 >= argc) return fail(err, "%s: %s needs a value; see stagediff %s --help", cmd->name, o->name, cmd->name);
    return set_value(cmd, o, argv[++*i], err);
}

int options_parse(struct command *cmd, int argc, char **argv, struct error *err) {
    set_defaults(cmd, cmd->options);
    set_defaults(cmd, common);
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "--"))
            break;
        else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            print_help(cmd);
            return 1;
        }
    bool only_positional = false;
    for (int i = 0; i < argc; i++)
        if (parse_word(cmd, &i, argc, argv, &only_positional, err)) return -1;
    for (const struct option *o = cmd->options; o->name; o++)
        if (o->required && !o->given)
            return fail(err, "%s: %s is missing (%s); see stagediff %s --help", cmd->name, o->name, o->help ? o->help : "required",
                        cmd->name);
    cmd->threads = (int)common[0].number;
    cmd->quiet = common[1].number != 0;
    return 0;
}

const struct option *option(const struct command *cmd, const char *name) {
    const struct option *o = cmd->options;
    while (o->name && strcmp(o->name, name)) o++;
    CHECK(o->name, "command %s has no option %s", cmd->name, name);
    return o;
}
