/* run_stages.c - the stages in order, and when a finished one may be skipped. */
#include "analysis/run.h"
#include "host/options.h"
#include "host/file.h"
#include "host/progress.h"
#include <dirent.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/device.h"

const char *const run_stage_names[RUN_STAGES] = {"train", "diff", "select", "attribute", "evaluate", "intervene", "steer", "report"};

static const struct stage {
    int (*run)(const struct run_config *, struct device *, sqlite3 *, struct error *);
    unsigned before; /* bits of the stages it builds on, those that they build on included */
    int version;     /* raised when this program would write other rows from the same settings */
    bool optional;   /* runs when the configuration has its section */
    const char *what;
} stages[RUN_STAGES] = {
    [RUN_TRAIN] = {stage_train, 0, 1, false, "fine-tune one dictionary per layer and regime on streamed activations"},
    [RUN_DIFF] = {stage_diff, 1U << RUN_TRAIN, 1, false, "energies, cosines and the adapted features, against the base dictionaries"},
    [RUN_SELECT] = {stage_select, 1U << RUN_TRAIN | 1U << RUN_DIFF, 1, true,
                    "which features fire for a task: odds ratio, Fisher's test, prompt filter"},
    [RUN_ATTRIBUTE] = {stage_attribute, 1U << RUN_TRAIN | 1U << RUN_DIFF | 1U << RUN_SELECT, 1, true,
                       "which attention heads write a task's features, estimated and patched"},
    [RUN_EVALUATE] = {stage_evaluate, 0, 1, true, "answers to questions and statements, scored"},
    [RUN_INTERVENE] = {stage_intervene, (1U << RUN_INTERVENE) - 1, 1, true, "what edits do to the answers, beside matched controls"},
    [RUN_STEER] = {stage_steer, 0, 1, true, "accuracy by layer and strength of a direction, chosen on dev, reported on test"},
    [RUN_REPORT] = {stage_report, (1U << RUN_REPORT) - 1, 1, false, "report.html"},
};

bool run_stage_wanted(const struct run_config *c, enum run_stage_index stage) {
    if (stage == RUN_DIFF && (!c->base || !c->saes)) return false; /* a plain language model: nothing to compare with */
    return !stages[stage].optional || json_object_get(c->resolved, run_stage_names[stage]);
}

const char *run_stage_what(enum run_stage_index stage) { return stages[stage].what; }

/* Directly or through others. */
static bool builds_on(enum run_stage_index stage, enum run_stage_index other) { return stages[stage].before >> other & 1; }

/* 64-bit FNV-1a (Fowler, Noll, Vo) */
static void mix(uint64_t *h, const void *data, size_t bytes) {
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++) *h = (*h ^ p[i]) * 0x100000001b3u;
}

static void mix_json(uint64_t *h, const json_t *value) {
    char *text = value ? json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY) : NULL;
    if (text) mix(h, text, strlen(text) + 1);
    free(text);
}

static void mix_stat(uint64_t *h, const char *path) {
    struct stat info;
    if (stat(path, &info)) return;
    int64_t facts[] = {S_ISDIR(info.st_mode) ? 0 : (int64_t)info.st_size, S_ISDIR(info.st_mode) ? 0 : (int64_t)info.st_mtim.tv_sec,
                       S_ISDIR(info.st_mode) ? 0 : (int64_t)info.st_mtim.tv_nsec};
    mix(h, facts, sizeof facts);
}

enum { PATH_DEPTH = 4 }; /* saes/L3R-8x/checkpoints/final.safetensors */

/* A file by size and time of change; a folder by those of its entries, in any order, and so on downwards. */
static void mix_path(uint64_t *h, const char *path, int depth) {
    uint64_t sum = 0;
    if (!path) return;
    mix_stat(h, path);
    DIR *dir = depth > 0 ? opendir(path) : NULL;
    if (!dir) return;
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        uint64_t one = 0xcbf29ce484222325u;
        if (entry->d_name[0] == '.') continue;
        char *inside = path_join(path, entry->d_name);
        mix(&one, entry->d_name, strlen(entry->d_name));
        mix_path(&one, inside, depth - 1);
        free(inside);
        sum += one;
    }
    closedir(dir);
    mix(h, &sum, sizeof sum);
}

void run_inputs_hash(char hash[17], const char *const *paths, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) mix_path(&h, paths[i], PATH_DEPTH);
    snprintf(hash, 17, "%016llx", (unsigned long long)h);
}

/* Settings that change how a stage runs but not what it finds. */
static json_t *findings_settings(const struct run_config *c, const char *section) {
    static const char *const idle[] = {"checkpoint_seconds", "log_every", "layers_at_once"};
    json_t *copy = json_deep_copy(json_object_get(c->resolved, section));
    for (size_t i = 0; copy && i < sizeof idle / sizeof *idle; i++) json_object_del(copy, idle[i]);
    return copy;
}

/* The files that the data sets of a stage name. */
static void mix_dataset(uint64_t *h, const struct dataset *d) {
    mix_path(h, d->data, 0);
    mix_path(h, d->annotations, 0);
    mix_path(h, d->keywords, 0);
}

static void mix_datasets(uint64_t *h, const struct run_config *c, enum run_stage_index stage) {
    for (int i = 0; stage == RUN_SELECT && i < c->n_select; i++) {
        mix_dataset(h, &c->select[i].target);
        mix_dataset(h, &c->select[i].general);
        mix_path(h, c->select[i].prompts, 0);
    }
    for (int i = 0; stage == RUN_ATTRIBUTE && i < c->n_attribute; i++) mix_dataset(h, &c->attribute[i].set);
    for (int i = 0; stage == RUN_EVALUATE && i < c->n_evaluate; i++) mix_dataset(h, &c->evaluate[i].set);
    for (int i = 0; stage == RUN_STEER && i < c->n_steer; i++) {
        mix_dataset(h, &c->steer[i].train);
        mix_dataset(h, &c->steer[i].dev);
        mix_dataset(h, &c->steer[i].test);
        mix_path(h, c->steer[i].sae, PATH_DEPTH);
    }
    for (int i = 0; stage == RUN_INTERVENE && i < c->n_intervene; i++) mix_path(h, c->intervene[i].edit, 0);
}

void run_stage_hash(char hash[17], const struct run_config *c, enum run_stage_index stage) {
    static const char *const common[] = {"base", "model", "saes", "layers", "regimes", "seed", "data"};
    const char *const paths[] = {c->model, c->base, c->saes, c->train_data, c->validation_data};
    const bool alone = stage == RUN_EVALUATE || stage == RUN_STEER; /* needs the model and its own data, no dictionary */
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof common / sizeof *common; i++)
        if (!alone || !strcmp(common[i], "model")) mix_json(&h, json_object_get(c->resolved, common[i]));
    for (size_t i = 0; i < (alone ? 1 : sizeof paths / sizeof *paths); i++) mix_path(&h, paths[i], PATH_DEPTH);
    for (int s = 0; s <= (int)stage; s++) {
        if (s != (int)stage && !builds_on(stage, (enum run_stage_index)s)) continue;
        json_t *settings = findings_settings(c, run_stage_names[s]);
        mix(&h, &stages[s].version, sizeof stages[s].version);
        mix_json(&h, settings);
        mix_datasets(&h, c, (enum run_stage_index)s);
        json_decref(settings);
    }
    if (stage == RUN_DIFF || stage == RUN_SELECT) /* the number of pages decides which examples are kept */
        mix_json(&h, json_object_get(json_object_get(c->resolved, "report"), "features"));
    snprintf(hash, 17, "%016llx", (unsigned long long)h);
}

bool run_stage_finished(sqlite3 *db, const struct run_config *c, enum run_stage_index stage) {
    char hash[17];
    run_stage_hash(hash, c, stage);
    bool done = run_stage_done(db, run_stage_names[stage], hash);
    for (int r = 0; r < REGIME_COUNT && stage == RUN_TRAIN && done; r++) {
        char *path = run_sae_path(c, (enum regime)r, c->n_layers ? c->layers[0] : 0);
        done = !c->regimes[r] || dir_exists(path);
        free(path);
    }
    if (stage == RUN_REPORT && done) {
        char *path = path_join(c->out, "report.html");
        done = file_exists(path);
        free(path);
    }
    return done;
}

void run_stages_due(bool due[RUN_STAGES], sqlite3 *db, const struct run_config *c) {
    for (int s = 0; s < RUN_STAGES; s++) {
        const enum run_stage_index stage = (enum run_stage_index)s;
        due[s] = !run_stage_finished(db, c, stage);
        for (int before = 0; before < s; before++) due[s] = due[s] || (due[before] && builds_on(stage, (enum run_stage_index)before));
        due[s] = due[s] && run_stage_wanted(c, stage);
    }
}

int run_stage(const struct run_config *c, struct device *dev, sqlite3 *db, enum run_stage_index stage, struct error *err) {
    char hash[17];
    double start = seconds_now();
    run_stage_hash(hash, c, stage); /* before: a file that changes while the stage runs makes it stale */
    int status = stage == RUN_REPORT ? 0 : run_config_write(c, err);
    for (int s = stage; s < RUN_STAGES && status == 0; s++)
        if (s == (int)stage || builds_on((enum run_stage_index)s, stage))
            status = run_db_run(db, err, "DELETE FROM stages WHERE stage = ?", "t", run_stage_names[s]);
    if (status == 0) status = stages[stage].run(c, dev, db, err);
    if (status == 0) status = run_stage_finish(db, run_stage_names[stage], hash, seconds_now() - start, err);
    return status;
}

int run_session_open(struct run_session *s, const char *path, int threads, struct error *err) {
    char why[256] = "";
    memset(s, 0, sizeof *s);
    if (run_config_open(&s->c, path, err)) return -1;
    s->dev = device_open(0, threads, why, sizeof why);
    if (!s->dev) return fail(err, "no device: %s", why);
    if (run_db_open(&s->db, &s->c, err)) return -1;
    stop_install();
    return 0;
}

void run_session_close(struct run_session *s) {
    sqlite3_close(s->db);
    device_close(s->dev);
    run_config_free(&s->c);
}

int run_stage_or_options(const struct command *self, enum run_stage_index stage, const char *beside,
                         int (*from_options)(const struct command *self, struct error *err), struct error *err) {
    const struct option *config = option(self, "CONFIG");
    struct run_session s;
    if (!config->given) return from_options(self, err);
    for (const struct option *o = self->options; o->name; o++)
        if (o != config && o->given)
            return fail(err, "%s: %s goes with --model and %s; with a CONFIG.json the settings stand in that file", self->name, o->name,
                        beside);
    int status = run_session_open(&s, config->text, self->threads, err);
    if (status == 0) status = run_stage(&s.c, s.dev, s.db, stage, err);
    run_session_close(&s);
    return status;
}
