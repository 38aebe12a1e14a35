/* dataset.c - reads a data file, published or our own, and keeps the lines that a stage wants (dataset.h). */
#include "analysis/dataset.h"
#include "host/file.h"
#include "host/samples.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* ---- words and phrases ---- */

int phrases_open(char ***list, int *n, const char *path, struct error *err) {
    char *data = NULL;
    size_t size = 0, capacity = 0;
    *list = NULL, *n = 0;
    if (file_read(path, 16 << 20, &data, &size, err)) return -1;
    for (char *line = data, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        while (*line && isspace((unsigned char)*line)) line++;
        size_t used = strlen(line);
        while (used && isspace((unsigned char)line[used - 1])) line[--used] = 0;
        if (!used || *line == '#') continue;
        if ((size_t)*n == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            *list = memory_grow(*list, capacity, sizeof **list);
        }
        (*list)[(*n)++] = memory_string(line);
    }
    free(data);
    return *n > 0 ? 0 : fail(err, "%s: holds no line of text; one word or phrase a line is needed", path);
}

void phrases_free(char **list, int n) {
    for (int i = 0; i < n; i++) free(list[i]);
    free(list);
}

static bool word_letter(char c) { return isalnum((unsigned char)c) || c == '_' || (unsigned char)c >= 0x80; }

/* Bytes of text that the phrase takes at its beginning, 0: not there. A blank or hyphen of the phrase takes one or more of either. */
static size_t match_here(const char *text, const char *phrase) {
    const char *t = text;
    for (const char *p = phrase; *p;) {
        if (*p == ' ' || *p == '-') {
            if (*t != '-' && !isspace((unsigned char)*t)) return 0;
            while (*t == '-' || (*t && isspace((unsigned char)*t))) t++;
            while (*p == ' ' || *p == '-') p++;
        } else if (tolower((unsigned char)*p++) != tolower((unsigned char)*t++)) {
            return 0;
        }
    }
    return word_letter(*t) ? 0 : (size_t)(t - text);
}

int phrases_match(char *const *list, int n, const char *text) {
    for (const char *t = text; *t; t++) {
        if (t > text && word_letter(t[-1])) continue;
        for (int i = 0; i < n; i++)
            if (match_here(t, list[i])) return 1;
    }
    return 0;
}

/* ---- which lines ---- */

static bool has_values(const struct sample *s, json_t *where) {
    const char *key;
    json_t *value;
    json_object_foreach(where, key, value) {
        const json_t *own = json_object_get(s->json, key);
        const bool same = json_is_number(value) && json_is_number(own) ? json_number_value(value) == json_number_value(own)
                                                                       : own && json_equal(own, value);
        if (!same) return false;
    }
    return true;
}

static const char *text_of(const struct sample *s) {
    return s->question ? s->question : s->caption ? s->caption : s->prompt ? s->prompt : "";
}

/* {question} and {caption} of `ask` by the line's own. */
static int put_question(struct sample *s, const char *ask, const char *path, struct error *err) {
    static const char *const names[] = {"{question}", "{caption}"};
    const char *const own[] = {s->question, s->caption};
    size_t bytes = strlen(ask) + 1, used = 0;
    for (int i = 0; i < 2; i++)
        for (const char *p = strstr(ask, names[i]); p; p = strstr(p + 1, names[i])) {
            if (!own[i]) return fail(err, "%s, line %ld: \"ask\" wants the line's %s, which it does not have", path, s->line, names[i]);
            bytes += strlen(own[i]);
        }
    char *text = memory_take(bytes, 1);
    while (*ask) {
        int i = !strncmp(ask, names[0], strlen(names[0])) ? 0 : !strncmp(ask, names[1], strlen(names[1])) ? 1 : -1;
        if (i < 0) {
            text[used++] = *ask++;
            continue;
        }
        memcpy(text + used, own[i], strlen(own[i]));
        used += strlen(own[i]);
        ask += strlen(names[i]);
    }
    free(s->question), free(s->prompt);
    s->question = text;
    s->prompt = NULL;
    return 0;
}

static void drop(struct sample *s) {
    struct samples one = {.at = memory_take(1, sizeof *s), .count = 1};
    one.at[0] = *s;
    samples_free(&one);
}

int dataset_open(const struct dataset *d, struct samples *s, struct error *err) {
    char **phrases = NULL;
    int n_phrases = 0, status = 0;
    if (d->keywords && phrases_open(&phrases, &n_phrases, d->keywords, err)) return -1;
    if (samples_open_published(s, d->data, d->annotations, d->images, err)) {
        phrases_free(phrases, n_phrases);
        return -1;
    }
    size_t all = s->count, kept = 0;
    for (size_t i = 0; i < all; i++) {
        struct sample *one = &s->at[i];
        const bool wanted = (d->samples == 0 || kept < (size_t)d->samples) && (!d->where || has_values(one, d->where)) &&
                            (!phrases || phrases_match(phrases, n_phrases, text_of(one)));
        if (wanted)
            s->at[kept++] = *one;
        else
            drop(one);
    }
    s->count = kept;
    if (kept == 0) status = fail(err, "%s: none of its %zu lines is one that \"where\" and \"keywords\" let through", d->data, all);
    for (size_t i = 0; d->ask && i < kept && status == 0; i++) status = put_question(&s->at[i], d->ask, d->data, err);
    if (status) samples_free(s);
    phrases_free(phrases, n_phrases);
    return status;
}
