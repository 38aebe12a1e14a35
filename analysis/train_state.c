/* train_state.c - where stage_train stands: OUT/state/state.json and the trainers' files it names.
 *
 * Files of a generation are written under new names first, state.json is renamed into place last, and only then what it does not name
 * is removed: whenever a run dies, state.json and its files are of one moment. */
#include "analysis/train_job.h"
#include "host/file.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *train_state_path(const struct run_config *c, const char *name) {
    char *folder = path_join(c->out, "state"), *path = path_join(folder, name);
    free(folder);
    return path;
}

/* What must be the same for a state to go on: all that changes the numbers, input files (size, time of change) included. */
static json_t *identity(const struct run_config *c) {
    static const char *const top[] = {"out", "base", "diff", "report"}, *const train[] = {"log_every", "checkpoint_seconds", "dead_window",
                                                                                          "layers_at_once"};
    json_t *o = json_deep_copy(c->resolved);
    for (size_t i = 0; i < sizeof top / sizeof *top; i++) json_object_del(o, top[i]);
    for (size_t i = 0; i < sizeof train / sizeof *train; i++) json_object_del(json_object_get(o, "train"), train[i]);
    json_object_del(json_object_get(o, "data"), "validation");
    char hash[17];
    run_inputs_hash(hash, (const char *const[]){c->model, c->saes, c->train_data}, 3);
    json_object_set_new(o, "input_files", json_string(hash));
    return o;
}

void train_state_free(struct train_state *s) {
    for (int i = 0; i < s->n_files; i++) free(s->files[i]);
    free(s->files);
    s->files = NULL;
    s->n_files = 0;
}

static int read_state(struct train_state *s, json_t *o, const char *path, struct error *err) {
    json_int_t group, at_once, cursor, block, trainee, batch, generation, metrics, rows, skipped;
    int done;
    json_t *files;
    json_error_t where;
    if (json_unpack_ex(o, &where, 0, "{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:o}", "done", &done, "group", &group,
                       "layers_at_once", &at_once, "cursor", &cursor, "block", &block, "trainee", &trainee, "batch", &batch, "generation",
                       &generation, "metrics_bytes", &metrics, "elapsed", &s->elapsed, "rows", &rows, "skipped", &skipped, "files", &files))
        return fail(err, "%s: not a state that this build wrote (%s); delete the folder to start again", path, where.text);
    s->found = true, s->done = done != 0;
    s->group = (int)group, s->layers_at_once = (int)at_once, s->trainee = (int)trainee, s->batch = (int)batch;
    s->cursor = (long)cursor, s->block = (long)block, s->generation = (long)generation, s->metrics_bytes = (long)metrics,
    s->rows = (long)rows, s->skipped = (long)skipped;
    s->n_files = (int)json_array_size(files);
    s->files = memory_take((size_t)s->n_files + 1, sizeof *s->files);
    for (int i = 0; i < s->n_files; i++) {
        const char *name = json_string_value(json_array_get(files, (size_t)i));
        s->files[i] = memory_string(name && !strchr(name, '/') ? name : "missing");
    }
    return 0;
}

int train_state_load(struct train_state *s, const struct run_config *c, struct error *err) {
    char *path = train_state_path(c, "state.json");
    json_t *o = NULL, *mine = identity(c);
    json_error_t where;
    int status = 0;
    memset(s, 0, sizeof *s);
    if (!file_exists(path)) goto done;
    o = json_load_file(path, 0, &where);
    if (!o) {
        status = fail(err, "%s: line %d: not valid JSON: %s; delete the folder to start again", path, where.line, where.text);
        goto done;
    }
    bool same = json_equal(json_object_get(o, "settings"), mine);
    if (!same && !json_is_true(json_object_get(o, "done")))
        status = fail(err,
                      "%s: holds an unfinished training with other settings or input files; finish it, delete the folder %s/state, or "
                      "choose another \"out\"",
                      path, c->out);
    else if (same)
        status = read_state(s, o, path, err);
done:
    json_decref(o), json_decref(mine);
    free(path);
    return status;
}

static bool named(const struct train_state *s, const char *name) {
    for (int i = 0; i < s->n_files; i++)
        if (strcmp(s->files[i], name) == 0) return true;
    return false;
}

static void remove_others(const struct train_state *s, const struct run_config *c) {
    char *folder = train_state_path(c, "");
    DIR *dir = opendir(folder);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        if (!strstr(e->d_name, ".safetensors") || named(s, e->d_name)) /* temporaries of killed processes go too */
            continue;
        char *path = train_state_path(c, e->d_name);
        unlink(path);
        free(path);
    }
    if (dir) closedir(dir);
    free(folder);
}

int train_state_write(const struct train_state *s, const struct run_config *c, struct error *err) {
    struct file_writer w = {0};
    char *path = train_state_path(c, "state.json");
    json_t *files = json_array();
    for (int i = 0; i < s->n_files; i++) json_array_append_new(files, json_string(s->files[i]));
    json_t *o = json_pack("{s:o, s:b, s:i, s:i, s:I, s:I, s:i, s:i, s:I, s:I, s:f, s:I, s:I, s:o}", "settings", identity(c), "done",
                          s->done, "group", s->group, "layers_at_once", s->layers_at_once, "cursor", (json_int_t)s->cursor, "block",
                          (json_int_t)s->block, "trainee", s->trainee, "batch", s->batch, "generation", (json_int_t)s->generation,
                          "metrics_bytes", (json_int_t)s->metrics_bytes, "elapsed", s->elapsed, "rows", (json_int_t)s->rows, "skipped",
                          (json_int_t)s->skipped, "files", files);
    int status = file_writer_open(&w, path, err);
    if (status == 0 && json_dumpf(o, w.stream, JSON_INDENT(2))) {
        file_writer_abort(&w);
        status = fail(err, "%s: cannot write: %s", path, strerror(errno));
    } else if (status == 0) {
        status = file_writer_commit(&w, err);
    }
    if (status == 0) remove_others(s, c);
    json_decref(o);
    free(path);
    return status;
}
