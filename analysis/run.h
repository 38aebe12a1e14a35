/* run.h - a run: config.json (resolved), its folder, its database, and the stages. */
#ifndef ANALYSIS_RUN_H
#define ANALYSIS_RUN_H
#include "analysis/dataset.h"
#include "host/error.h"
#include <jansson.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
enum regime { REGIME_FULL, REGIME_IMAGE, REGIME_TEXT, REGIME_RANDOM, REGIME_COUNT };
extern const char *const regime_names[REGIME_COUNT]; /* "full", "image", "text", "random" */

enum { SELECT_TOP = 8 }; /* most samples that the prompt filter can look at for a feature */
struct run_select {      /* one task of the section "select" */
    char *task;          /* its name */
    struct dataset target, general;
    double odds_ratio, difference; /* a feature is selected from these on: 3, 0.05 */
    char *prompts;                 /* file of neutral prompts; NULL: no prompt filter */
    int top_samples;               /* 5 */
    double fires_above;            /* 0.01 */
};
enum run_task { TASK_AUTO, TASK_VQA, TASK_VSR };
struct run_evaluate { /* one data set of the section "evaluate" */
    char *name;
    struct dataset set;
    enum run_task task;
    char *split_by; /* key of the lines that splits the table; NULL: none */
    int max_new_tokens;
};

struct run_attribute { /* one target of the section "attribute" */
    char *target;      /* its name */
    char *features_of; /* a task of select: its features in all layers together, */
    int top;           /* or so many of them, strongest first; 0: all */
    struct dataset set;
    int corrupt, metric; /* enum attribute_corruption; 0 direction, 1 code */
    char *gradient;      /* "corrupt", "clean", "ig:N" */
    int exact, maps;     /* heads patched; heads whose attention to the picture is kept */
};
struct run_intervene { /* one intervention of the section "intervene" */
    char *name;
    char *edit;        /* SPEC.json; or */
    char *features_of; /* a task of select: the decoder rows of its features are projected out; or */
    char *heads_of;    /* a target of attribute: its strongest heads are set to zero */
    int top;           /* how many features or heads; 0: all */
    char **on;         /* names of data sets of "evaluate"; NULL: all of them */
    int n_on;
    int controls;    /* 20 */
    bool directions; /* controls are random directions for decoder rows too */
};

struct run_steer { /* one sweep of the section "steer" */
    char *name;
    struct dataset train, dev, test; /* train.data NULL: method decoder */
    enum run_task task;
    int max_new_tokens;
    int method;    /* enum steer_method */
    bool outcomes; /* the contrast: lines answered right and wrong; false: right and wrong answers appended */
    char *sae;     /* of the feature */
    int feature, layer;
    double factor;
    int *layers, n_layers; /* n_layers 0: all */
    double *strengths;
    int n_strengths, controls;
};

struct run_config {                         /* CONFIG.json, checked; every path resolved against the config's folder. See docs/config.md */
    char *out;                              /* run folder */
    char *base, *model, *saes;              /* base LLM folder; VLM folder; folder of per-layer dictionaries */
    char *train_data, *validation_data;     /* JSONL */
    long train_samples, validation_samples; /* 0: all */
    int n_layers, *layers;                  /* which LLM layers; n_layers 0 and layers NULL until the model is known means all */
    bool regimes[REGIME_COUNT];
    int k, batch, forward_samples; /* TopK's k (50); SAE rows a step (4096); samples a forward pass (8) */
    long ring_rows;                /* shuffle block, rows a layer (65536) */
    double passes;                 /* over the training samples (1) */
    double lr;                     /* 2e-4 */
    bool bf16_products, unit_norm_decoder, remove_parallel;
    int features;            /* M of the random start; 0: that of the base dictionary, 8 d_model without one */
    int layers_at_once;      /* layers trained in one pass over the data; 0: as many as fit */
    int log_every;           /* steps of an SAE between lines of metrics.jsonl (10) */
    long dead_window;        /* rows (10,000,000) */
    long checkpoint_seconds; /* 300 */
    unsigned long seed;
    double diff_eps, diff_percentile; /* 0.01, 25 */
    enum regime diff_regime;          /* text */
    long diff_samples;                /* validation samples for E_v and E_t; 0: all */
    bool diff_text_tokens;            /* diff.tokens "text": only text tokens enter E_v; "all" (default): image tokens too */
    struct run_select *select;        /* n_select tasks; none: no such stage */
    int n_select;
    struct run_attribute *attribute; /* n_attribute targets; none: no such stage */
    int n_attribute;
    struct run_evaluate *evaluate; /* n_evaluate data sets; none: no such stage */
    int n_evaluate;
    struct run_intervene *intervene; /* n_intervene of them; none: no such stage */
    int n_intervene;
    struct run_steer *steer; /* n_steer sweeps; none: no such stage */
    int n_steer;
    int report_features; /* feature pages in the report (24) */
    json_t *resolved;    /* what config.json of the run holds: paths absolute, defaults filled in, one object a stage
                            ("train", "diff", ..) beside the common keys */
};
int run_config_open(struct run_config *c, const char *path, struct error *err);
void run_config_free(struct run_config *c);
int run_config_write(const struct run_config *c, struct error *err); /* `resolved` to OUT/config.json */

/* Opens the data file of training or validation and says which of its samples are meant: [*first, *first + *count). Without a
 * validation file (or with the training file given twice) validation takes the samples after the training ones. */
struct samples;
int run_samples(const struct run_config *c, bool validation, struct samples *s, size_t *first, size_t *count, struct error *err);

/* Where things lie (run_paths.c); malloced. The run's dictionary: OUT/sae/<regime>/layer_<L> (SAELens layout). The base
 * dictionary of a layer: the one entry of c->saes whose name says that layer (layer_3, L3R, l3r, blocks.3., 3). */
char *run_sae_path(const struct run_config *c, enum regime regime, int layer);
char *run_base_sae_path(const struct run_config *c, int layer, struct error *err); /* NULL with err */

/* run.db: opened (created) in the run folder, WAL off, foreign keys on; tables and the stable views of docs/database.md. */
int run_db_open(sqlite3 **db, const struct run_config *c, struct error *err);
int run_db_exec(sqlite3 *db, struct error *err, const char *sql);
/* Compiles one statement and binds by letter: 'i' long, 'd' double (NaN is NULL), 't' const char * (NULL is NULL), 'b' const void * and
 * size_t bytes. run_db_run also runs it to its end: `run_db_run(db, err, "DELETE FROM layers WHERE regime = ?", "t", "full")`. */
int run_db_prepare(sqlite3 *db, sqlite3_stmt **s, struct error *err, const char *sql, const char *types, ...);
int run_db_run(sqlite3 *db, struct error *err, const char *sql, const char *types, ...);
/* One row of `layers` (view layer_metrics), replacing the pair's old row; regime: regime_names[] or "base". */
struct layer_row {
    int layer;
    const char *regime;
    long tokens; /* kept tokens the figures are over */
    double fvu, fvu_as_coded, l0;
    long dead_features, features; /* features: dictionary size M */
};
int run_db_layer(sqlite3 *db, const struct layer_row *row, struct error *err);
/* Facts about a stage that are no rows of their own (device, tokens a second, thresholds): replaced by name; text or number. */
int run_db_fact(sqlite3 *db, const char *stage, const char *name, const char *text, struct error *err);
int run_db_fact_real(sqlite3 *db, const char *stage, const char *name, double value, struct error *err);
/* Stage bookkeeping for `run`: a finished stage with the same settings hash is skipped. */
bool run_stage_done(sqlite3 *db, const char *stage, const char *settings_hash);
int run_stage_finish(sqlite3 *db, const char *stage, const char *settings_hash, double seconds, struct error *err);

/* The stages; each writes its rows in one transaction and replaces those of an earlier run of itself.
 * Return 0, -1 with err, or 128+signal after saving its state. */
struct device;
int stage_train(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err);
int stage_diff(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err);
int stage_select(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err);
int stage_attribute(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err);
int stage_evaluate(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err);
int stage_intervene(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err);
int stage_steer(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err);
int stage_report(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err);

/* run_stages.c: stages in order, one row of `stages` for each that is finished. run_stage runs one, records it with its settings
 * hash and time, and forgets those that build on it. `hash` is of what the stage depends on: its settings, its input files (size and
 * time of change), and those of the stages it builds on. */
enum run_stage_index { RUN_TRAIN, RUN_DIFF, RUN_SELECT, RUN_ATTRIBUTE, RUN_EVALUATE, RUN_INTERVENE, RUN_STEER, RUN_REPORT, RUN_STAGES };
extern const char *const run_stage_names[RUN_STAGES];
void run_inputs_hash(char hash[17], const char *const *paths, size_t n); /* of files and folders alone; NULL paths are skipped */
void run_stage_hash(char hash[17], const struct run_config *c, enum run_stage_index stage);
const char *run_stage_what(enum run_stage_index stage);                        /* in a few words */
bool run_stage_wanted(const struct run_config *c, enum run_stage_index stage); /* an optional stage without its section is not */
bool run_stage_finished(sqlite3 *db, const struct run_config *c, enum run_stage_index stage);
/* due [out]: what `run` has to do: stages that are wanted and not finished, or build on one that is due. */
void run_stages_due(bool due[RUN_STAGES], sqlite3 *db, const struct run_config *c);
int run_stage(const struct run_config *c, struct device *dev, sqlite3 *db, enum run_stage_index stage, struct error *err);

/* What a stage command works with: the checked CONFIG.json, the device, run.db; from here on SIGINT and SIGTERM are answered by
 * saving (stop_install). Close it also after a failed open. */
struct run_session {
    struct run_config c;
    struct device *dev;
    sqlite3 *db;
};
int run_session_open(struct run_session *s, const char *path, int threads, struct error *err);
void run_session_close(struct run_session *s);
/* A command that is a stage with CONFIG.json and a single step with options: the one (then no option stands beside it) or the other.
 * beside: the option that goes with --model, for the sentence. */
struct command;
int run_stage_or_options(const struct command *self, enum run_stage_index stage, const char *beside,
                         int (*from_options)(const struct command *self, struct error *err), struct error *err);
#endif
