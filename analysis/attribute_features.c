/* attribute_features.c - what the words of `attribute` mean: features, dictionary, gradient (attribute.h). */
#include "analysis/attribute.h"
#include "analysis/select.h"
#include "host/file.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static int by_number(const void *a, const void *b) {
    const int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* Sorted, each once. */
static void settle(int *list, int *n) {
    int kept = 0;
    qsort(list, (size_t)*n, sizeof *list, by_number);
    for (int i = 0; i < *n; i++)
        if (!kept || list[i] != list[kept - 1]) list[kept++] = list[i];
    *n = kept;
}

static int from_numbers(int **list, int *n, const char *text, const struct sae_host *sae, const char *path, struct error *err) {
    size_t room = 1;
    for (const char *c = text; *c; c++) room += *c == ',';
    *list = memory_take(room, sizeof **list);
    *n = 0;
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        const long f = strtol(at, &end, 10);
        if (*at < '0' || *at > '9' || (*end && *end != ',') || errno)
            return fail(err, "--features %.100s: expected numbers like 3,17 or task:NAME", text);
        if (f >= sae->M) return fail(err, "--features: %ld is none of the features 0 to %d of %s", f, sae->M - 1, path);
        (*list)[(*n)++] = (int)f;
        if (!*end) break;
        at = end;
    }
    settle(*list, n);
    return 0;
}

/* The run.db of the run that a dictionary lies in: RUN/sae/<regime>/layer_<L>, or the folder itself; malloced, NULL: none. */
static char *run_db_of(const char *sae_path) {
    char *folder = realpath(sae_path, NULL);
    for (int up = 0; folder && up < 5; up++) {
        char *path = path_join(folder, "run.db");
        if (file_exists(path)) {
            free(folder);
            return path;
        }
        free(path);
        char *parent = path_folder(folder);
        free(folder);
        folder = parent;
    }
    free(folder);
    return NULL;
}

/* The task's features in one layer. */
static int of_layer(int **list, int *n, sqlite3 *db, const char *task, int layer, struct error *err) {
    struct task_feature *at = NULL;
    int all = 0;
    if (task_features(&at, &all, db, task, 0, err)) return -1;
    *list = memory_take((size_t)all + 1, sizeof **list);
    for (int i = 0; i < all; i++)
        if (at[i].layer == layer) (*list)[(*n)++] = at[i].feature;
    free(at);
    return 0;
}

static int from_task(int **list, int *n, const char *task, int layer, const struct sae_host *sae, const char *sae_path, struct error *err) {
    char *path = run_db_of(sae_path);
    sqlite3 *db = NULL;
    int status = -1;
    if (!path)
        fail(err, "--features task:%.60s: %s lies in no run (no run.db above it); give a dictionary of the run, RUN/sae/text/layer_%d",
             task, sae_path, layer);
    else if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK)
        fail(err, "%s: %s", path, db ? sqlite3_errmsg(db) : "out of memory");
    else
        status = of_layer(list, n, db, task, layer, err);
    if (status == 0 && *n == 0)
        status =
            fail(err, "%s: task \"%.60s\" has no feature in layer %d; see view task_features, or run stagediff select", path, task, layer);
    if (status == 0 && (*list)[*n - 1] >= sae->M)
        status =
            fail(err, "%s: feature %d of task \"%.60s\" is none of the %d features of %s", path, (*list)[*n - 1], task, sae->M, sae_path);
    sqlite3_close(db);
    free(path);
    return status;
}

int attribute_features(int **list, int *n, const char *text, int layer, const struct sae_host *sae, const char *sae_path,
                       struct error *err) {
    *list = NULL;
    *n = 0;
    return strncmp(text, "task:", 5) ? from_numbers(list, n, text, sae, sae_path, err)
                                     : from_task(list, n, text + 5, layer, sae, sae_path, err);
}

int attribute_sae(struct sae_host *s, const char *path, int layer, struct error *err) {
    if (sae_load(s, path, err)) return -1;
    if (s->activation == SAE_TOPK && s->K == 0 && sae_make_topk(s, 0, err)) return -1;
    if (s->layer >= 0 && s->layer != layer) log_note("%s is a dictionary of %s, used at layer %d", path, s->hook, layer);
    return 0;
}

int attribute_gradient_read(const char *text, enum attribute_gradient *g, int *steps, struct error *err) {
    char *end;
    *steps = 0;
    if (!strcmp(text, "corrupt") || !strcmp(text, "clean")) {
        *g = !strcmp(text, "clean") ? GRADIENT_CLEAN : GRADIENT_CORRUPT;
        return 0;
    }
    errno = 0;
    const long n = strncmp(text, "ig:", 3) ? 0 : strtol(text + 3, &end, 10);
    if (n < 1 || n > 100000 || errno || text[3] < '0' || text[3] > '9' || *end)
        return fail(err, "gradient %.60s: expected corrupt, clean or ig:N with N from 1 to 100000, as ig:8", text);
    *g = GRADIENT_PATH;
    *steps = (int)n;
    return 0;
}
