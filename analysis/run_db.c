/* run_db.c - run.db: its tables, the views that programs rely on, and small helpers round SQLite.
 *
 * Tables are ours and may change with `user_version`; the views `layer_metrics` and `feature_metrics` are fixed by
 * docs/cli.md. docs/database.md describes every column. A stage writes inside one transaction, so an interrupted one
 * leaves the rows of the run before it. */
#include "analysis/run.h"
#include "host/file.h"
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define SCHEMA_VERSION 6 /* later ones add tables; an older file gets them when it is opened */
#define STRING_OF(x)   STRING_OF_(x)
#define STRING_OF_(x)  #x

static const char *const schema[] = {
    /* in pieces: C99 promises 4,095 characters a string */
    "CREATE TABLE IF NOT EXISTS stages("
    " stage TEXT PRIMARY KEY, settings_hash TEXT NOT NULL, seconds REAL NOT NULL, finished TEXT NOT NULL);"
    "CREATE TABLE IF NOT EXISTS facts("
    " stage TEXT NOT NULL, name TEXT NOT NULL, value, PRIMARY KEY(stage, name)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS layers("
    " layer INTEGER NOT NULL, regime TEXT NOT NULL, tokens INTEGER NOT NULL, fvu REAL, fvu_as_coded REAL, l0 REAL,"
    " dead_features INTEGER, features INTEGER, PRIMARY KEY(layer, regime)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS features("
    " layer INTEGER NOT NULL, regime TEXT NOT NULL, feature INTEGER NOT NULL,"
    " energy_image REAL NOT NULL, energy_text REAL NOT NULL, decoder_cosine REAL, encoder_cosine REAL,"
    " fire_image REAL NOT NULL, fire_text REAL NOT NULL, adapted INTEGER NOT NULL,"
    " energy_patches REAL NOT NULL, energy_words REAL NOT NULL, fire_patches REAL NOT NULL, fire_words REAL NOT NULL,"
    " PRIMARY KEY(layer, regime, feature)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS samples("
    " sample INTEGER PRIMARY KEY, id TEXT NOT NULL, image TEXT, question TEXT, answer TEXT,"
    " tokens TEXT NOT NULL, kinds BLOB NOT NULL, picture BLOB);"
    "CREATE TABLE IF NOT EXISTS examples("
    " layer INTEGER NOT NULL, regime TEXT NOT NULL, feature INTEGER NOT NULL, rank INTEGER NOT NULL,"
    " sample INTEGER NOT NULL REFERENCES samples(sample), position INTEGER NOT NULL, kind TEXT NOT NULL, value REAL NOT NULL,"
    " token_values BLOB NOT NULL, PRIMARY KEY(layer, regime, feature, rank));"
    "CREATE TABLE IF NOT EXISTS scores("
    " name TEXT NOT NULL, dataset TEXT NOT NULL, split TEXT NOT NULL, relation TEXT NOT NULL, n INTEGER NOT NULL, correct REAL NOT NULL,"
    " PRIMARY KEY(name, split, relation)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS answers("
    " name TEXT NOT NULL, sample INTEGER NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL, score REAL, p_yes REAL,"
    " PRIMARY KEY(name, sample)) WITHOUT ROWID;",
    "CREATE TABLE IF NOT EXISTS norms("
    " layer INTEGER NOT NULL, regime TEXT NOT NULL, feature INTEGER NOT NULL, decoder REAL, encoder REAL, base_decoder REAL, base_encoder "
    "REAL,"
    " PRIMARY KEY(layer, regime, feature)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS tasks("
    " task TEXT PRIMARY KEY, tokens_target INTEGER NOT NULL, tokens_general INTEGER NOT NULL, min_odds_ratio REAL NOT NULL,"
    " min_difference REAL NOT NULL, target_image INTEGER NOT NULL, target_template INTEGER NOT NULL, target_question INTEGER NOT NULL,"
    " general_image INTEGER NOT NULL, general_template INTEGER NOT NULL, general_question INTEGER NOT NULL);"
    "CREATE TABLE IF NOT EXISTS task_rows("
    " task TEXT NOT NULL, layer INTEGER NOT NULL, feature INTEGER NOT NULL, fired_target INTEGER NOT NULL, fired_general INTEGER NOT NULL,"
    " odds_ratio REAL, p_value REAL NOT NULL, log10_p REAL NOT NULL, q_value REAL NOT NULL, selected INTEGER NOT NULL,"
    " adapted INTEGER NOT NULL, prompt_invariant INTEGER, target_image INTEGER NOT NULL, target_template INTEGER NOT NULL,"
    " target_question INTEGER NOT NULL, general_image INTEGER NOT NULL, general_template INTEGER NOT NULL, general_question INTEGER NOT "
    "NULL,"
    " PRIMARY KEY(task, layer, feature)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS heads("
    " target TEXT NOT NULL, layer INTEGER NOT NULL, head INTEGER NOT NULL, method TEXT NOT NULL, corruption TEXT NOT NULL, score REAL NOT "
    "NULL,"
    " exact REAL, PRIMARY KEY(target, method, corruption, layer, head)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS attention("
    " target TEXT NOT NULL, layer INTEGER NOT NULL, head INTEGER NOT NULL, sample INTEGER NOT NULL REFERENCES samples(sample) ON DELETE"
    " CASCADE, weights BLOB NOT NULL, PRIMARY KEY(target, layer, head, sample));"
    "CREATE TABLE IF NOT EXISTS effects("
    " name TEXT NOT NULL, dataset TEXT NOT NULL, n INTEGER NOT NULL, baseline REAL, intervened REAL, delta REAL, ci_low REAL, ci_high REAL,"
    " lost INTEGER NOT NULL, gained INTEGER NOT NULL, mcnemar_p REAL NOT NULL, seed INTEGER NOT NULL, control_mean REAL, control_low REAL,"
    " control_high REAL, controls INTEGER NOT NULL, beyond INTEGER NOT NULL, edits TEXT NOT NULL, PRIMARY KEY(name, dataset));"
    "CREATE TABLE IF NOT EXISTS effect_controls("
    " name TEXT NOT NULL, dataset TEXT NOT NULL, draw INTEGER NOT NULL, delta REAL NOT NULL, PRIMARY KEY(name, dataset, draw)) WITHOUT "
    "ROWID;"
    "CREATE TABLE IF NOT EXISTS effect_relations("
    " name TEXT NOT NULL, dataset TEXT NOT NULL, relation TEXT NOT NULL, n INTEGER NOT NULL, baseline REAL, intervened REAL, delta REAL,"
    " ci_low REAL, ci_high REAL, lost INTEGER NOT NULL, gained INTEGER NOT NULL, mcnemar_p REAL NOT NULL,"
    " PRIMARY KEY(name, dataset, relation)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS steering("
    " name TEXT NOT NULL, dataset TEXT NOT NULL, split TEXT NOT NULL, layer INTEGER NOT NULL, strength REAL NOT NULL, n INTEGER NOT NULL,"
    " accuracy REAL NOT NULL, chosen INTEGER NOT NULL, PRIMARY KEY(name, dataset, split, layer, strength)) WITHOUT ROWID;",
    "CREATE VIEW IF NOT EXISTS layer_metrics AS"
    " SELECT layer, regime, tokens, fvu, fvu_as_coded, l0, dead_features FROM layers;"
    "CREATE VIEW IF NOT EXISTS feature_metrics AS"
    " SELECT layer, regime, feature, energy_image, energy_text, decoder_cosine, encoder_cosine, fire_image, fire_text, adapted"
    " FROM features;"
    "CREATE VIEW IF NOT EXISTS task_features AS"
    " SELECT layer, feature, task, fired_target, tokens_target, fired_general, tokens_general, odds_ratio, p_value, log10_p, q_value,"
    " selected, adapted, prompt_invariant FROM task_rows JOIN tasks USING(task);"
    "CREATE VIEW IF NOT EXISTS head_scores AS SELECT target, layer, head, method, corruption, score, exact FROM heads;"
    "CREATE VIEW IF NOT EXISTS interventions AS"
    " SELECT name, dataset, n, baseline, intervened, delta, ci_low, ci_high, lost, gained, mcnemar_p, control_mean, control_low, "
    "control_high,"
    " controls FROM effects;"
    "CREATE VIEW IF NOT EXISTS evaluations AS"
    " SELECT name, dataset, split, relation, n, correct, correct / n AS accuracy FROM scores;"
    "PRAGMA user_version = " STRING_OF(SCHEMA_VERSION) ";",
};

int run_db_exec(sqlite3 *db, struct error *err, const char *sql) {
    char *message = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &message) == SQLITE_OK) return 0;
    fail(err, "%s: %s", sqlite3_db_filename(db, "main"), message ? message : sqlite3_errmsg(db));
    sqlite3_free(message);
    return -1;
}

static int schema_version(sqlite3 *db) {
    sqlite3_stmt *s = NULL;
    int version = -1;
    if (sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &s, NULL) == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW)
        version = sqlite3_column_int(s, 0);
    sqlite3_finalize(s);
    return version;
}

/* What is there already is left alone. A failure leaves the transaction to the closing. */
static int make_schema(sqlite3 *db, struct error *err) {
    if (run_db_exec(db, err, "BEGIN IMMEDIATE")) return -1;
    for (size_t i = 0; i < sizeof schema / sizeof *schema; i++)
        if (run_db_exec(db, err, schema[i])) return -1;
    return run_db_exec(db, err, "COMMIT");
}

int run_db_open(sqlite3 **db, const struct run_config *c, struct error *err) {
    char *path = NULL;
    *db = NULL;
    if (dir_create(c->out, err)) return -1;
    path = path_join(c->out, "run.db");
    if (sqlite3_open(path, db) != SQLITE_OK) {
        fail(err, "%s: cannot open the run's database: %s", path, *db ? sqlite3_errmsg(*db) : "out of memory");
        goto failed;
    }
    sqlite3_busy_timeout(*db, 10000);
    /* WAL off: the folder stays one file that can be copied; the rollback journal keeps an interrupted stage's old rows. */
    if (sqlite3_exec(*db, "PRAGMA journal_mode = DELETE; PRAGMA foreign_keys = ON;", NULL, NULL, NULL) != SQLITE_OK) {
        fail(err, "%s: not a database that stagediff can use (%s); move it away or choose another \"out\"", path, sqlite3_errmsg(*db));
        goto failed;
    }
    int version = schema_version(*db);
    if (version < 0 || version > SCHEMA_VERSION) {
        fail(err, "%s: schema version %d, expected at most %d; it was written by a later stagediff: choose another \"out\"", path, version,
             SCHEMA_VERSION);
        goto failed;
    }
    if (version < SCHEMA_VERSION && make_schema(*db, err)) goto failed;
    free(path);
    return 0;
failed:
    sqlite3_close(*db);
    *db = NULL;
    free(path);
    return -1;
}

static int bind_all(sqlite3_stmt *s, const char *types, va_list args) {
    int status = SQLITE_OK;
    for (int i = 1; *types && status == SQLITE_OK; types++, i++) {
        if (*types == 'i') {
            status = sqlite3_bind_int64(s, i, va_arg(args, long));
        } else if (*types == 'd') {
            status = sqlite3_bind_double(s, i, va_arg(args, double)); /* SQLite stores NaN as NULL */
        } else if (*types == 't') {
            status = sqlite3_bind_text(s, i, va_arg(args, const char *), -1, SQLITE_TRANSIENT);
        } else if (*types == 'b') {
            const void *data = va_arg(args, const void *);
            status = sqlite3_bind_blob64(s, i, data, va_arg(args, size_t), SQLITE_TRANSIENT);
        } else {
            status = SQLITE_MISUSE;
        }
    }
    return status;
}

static int prepare(sqlite3 *db, sqlite3_stmt **s, struct error *err, const char *sql, const char *types, va_list args) {
    *s = NULL;
    if (sqlite3_prepare_v2(db, sql, -1, s, NULL) == SQLITE_OK && bind_all(*s, types, args) == SQLITE_OK) return 0;
    fail(err, "%s: %s", sqlite3_db_filename(db, "main"), sqlite3_errmsg(db));
    sqlite3_finalize(*s);
    *s = NULL;
    return -1;
}

int run_db_prepare(sqlite3 *db, sqlite3_stmt **s, struct error *err, const char *sql, const char *types, ...) {
    va_list args;
    va_start(args, types);
    int status = prepare(db, s, err, sql, types, args);
    va_end(args);
    return status;
}

int run_db_run(sqlite3 *db, struct error *err, const char *sql, const char *types, ...) {
    sqlite3_stmt *s = NULL;
    va_list args;
    va_start(args, types);
    int status = prepare(db, &s, err, sql, types, args);
    va_end(args);
    if (status == 0) {
        int step = SQLITE_ROW;
        while (step == SQLITE_ROW) step = sqlite3_step(s);
        if (step != SQLITE_DONE) status = fail(err, "%s: %s", sqlite3_db_filename(db, "main"), sqlite3_errmsg(db));
    }
    sqlite3_finalize(s);
    return status;
}

int run_db_layer(sqlite3 *db, const struct layer_row *row, struct error *err) {
    return run_db_run(db, err,
                      "INSERT OR REPLACE INTO layers(layer, regime, tokens, fvu, fvu_as_coded, l0, dead_features, features)"
                      " VALUES(?,?,?,?,?,?,?,?)",
                      "itidddii", (long)row->layer, row->regime, row->tokens, row->fvu, row->fvu_as_coded, row->l0, row->dead_features,
                      row->features);
}

int run_db_fact(sqlite3 *db, const char *stage, const char *name, const char *text, struct error *err) {
    return run_db_run(db, err, "INSERT OR REPLACE INTO facts(stage, name, value) VALUES(?,?,?)", "ttt", stage, name, text);
}

int run_db_fact_real(sqlite3 *db, const char *stage, const char *name, double value, struct error *err) {
    return run_db_run(db, err, "INSERT OR REPLACE INTO facts(stage, name, value) VALUES(?,?,?)", "ttd", stage, name, value);
}

bool run_stage_done(sqlite3 *db, const char *stage, const char *settings_hash) {
    struct error err;
    sqlite3_stmt *s = NULL;
    if (run_db_prepare(db, &s, &err, "SELECT 1 FROM stages WHERE stage = ? AND settings_hash = ?", "tt", stage, settings_hash))
        return false;
    bool done = sqlite3_step(s) == SQLITE_ROW;
    sqlite3_finalize(s);
    return done;
}

int run_stage_finish(sqlite3 *db, const char *stage, const char *settings_hash, double seconds, struct error *err) {
    return run_db_run(db, err,
                      "INSERT OR REPLACE INTO stages(stage, settings_hash, seconds, finished)"
                      " VALUES(?,?,?,strftime('%Y-%m-%dT%H:%M:%SZ','now'))",
                      "ttd", stage, settings_hash, seconds);
}
