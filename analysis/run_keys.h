/* run_keys.h - objects of CONFIG.json by tables: a key is what may stand there, where it goes and what it is when absent. Internal to
 * analysis/run_config.c and run_sections.c. */
#ifndef ANALYSIS_RUN_KEYS_H
#define ANALYSIS_RUN_KEYS_H
#include "analysis/run.h"

enum key_type {
    KEY_PATH,   /* char *, resolved against the config's folder; NULL when absent */
    KEY_TEXT,   /* char *, not empty; NULL when absent */
    KEY_LONG,   /* long */
    KEY_INT,    /* int */
    KEY_REAL,   /* double */
    KEY_BOOL,   /* bool */
    KEY_SEED,   /* unsigned long */
    KEY_CHOICE, /* int or enum: index into choices */
    KEY_SWITCH, /* bool: false is choices[0], true choices[1] */
    KEY_OTHER   /* only its name is checked; the caller reads it */
};
struct key {
    const char *name;
    enum key_type type;
    size_t offset; /* in what is filled */
    double low, high, fallback;
    const char *choices[5];
    bool required;
};
struct reader {
    const char *file;
    const char *folder; /* absolute, of the file */
    struct error *err;
};
/* Fills `into` from object o (NULL or null: all absent) by the table; *shown gets every key as it is used. where: "" at the top,
 * else "train" or "select[0].target", for messages. An unknown key, wrong type, value out of range or missing required key is an error. */
int keys_read(const struct reader *r, void *into, const struct key *keys, size_t n, const char *where, const json_t *o, json_t *shown);
int keys_bad_value(const struct reader *r, const char *where, const char *name, const json_t *v, const char *expected);

/* run_sections.c: the optional sections, lists of objects; *shown gets them with defaults filled in. */
int read_select(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown);
int read_attribute(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown);
int read_evaluate(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown);
int read_intervene(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown); /* after read_evaluate */
int read_steer(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown);
void free_sections(struct run_config *c);
#endif
