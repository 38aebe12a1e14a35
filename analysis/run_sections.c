/* run_sections.c - the optional sections of CONFIG.json that are lists of objects: "select", "attribute", "evaluate", "intervene", "steer".
 * docs/config.md. */
#include "analysis/attribute.h"
#include "analysis/run_keys.h"
#include "analysis/steer.h"
#include "host/file.h"
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TABLE(keys) keys, sizeof keys / sizeof *keys

/* The keys of a data set at `at` bytes into the struct. */
#define DATASET_KEYS(at)                                                                                                                   \
    {.name = "data", .type = KEY_PATH, .offset = (at) + offsetof(struct dataset, data), .required = true},                                 \
        {.name = "images", .type = KEY_PATH, .offset = (at) + offsetof(struct dataset, images)},                                           \
        {.name = "annotations", .type = KEY_PATH, .offset = (at) + offsetof(struct dataset, annotations)},                                 \
        {.name = "where", .type = KEY_OTHER}, {.name = "keywords", .type = KEY_PATH, .offset = (at) + offsetof(struct dataset, keywords)}, \
        {.name = "samples", .type = KEY_LONG, .offset = (at) + offsetof(struct dataset, samples), .high = 1e15}, {                         \
        .name = "ask", .type = KEY_TEXT, .offset = (at) + offsetof(struct dataset, ask)                                                    \
    }

static const struct key dataset_keys[] = {DATASET_KEYS(0)};

static const struct key select_keys[] = {
    {.name = "task", .type = KEY_TEXT, .offset = offsetof(struct run_select, task), .required = true},
    {.name = "target", .type = KEY_OTHER},
    {.name = "general", .type = KEY_OTHER},
    {.name = "odds_ratio", .type = KEY_REAL, .offset = offsetof(struct run_select, odds_ratio), .high = 1e9, .fallback = 3},
    {.name = "difference", .type = KEY_REAL, .offset = offsetof(struct run_select, difference), .low = -1, .high = 1, .fallback = 0.05},
    {.name = "prompts", .type = KEY_PATH, .offset = offsetof(struct run_select, prompts)},
    {.name = "top_samples",
     .type = KEY_INT,
     .offset = offsetof(struct run_select, top_samples),
     .low = 1,
     .high = SELECT_TOP,
     .fallback = 5},
    {.name = "fires_above", .type = KEY_REAL, .offset = offsetof(struct run_select, fires_above), .high = 1e30, .fallback = 0.01},
};

static const struct key attribute_keys[] = {
    {.name = "target", .type = KEY_TEXT, .offset = offsetof(struct run_attribute, target), .required = true},
    {.name = "features_of", .type = KEY_TEXT, .offset = offsetof(struct run_attribute, features_of), .required = true},
    {.name = "top", .type = KEY_INT, .offset = offsetof(struct run_attribute, top), .high = 1 << 20},
    DATASET_KEYS(offsetof(struct run_attribute, set)),
    {.name = "corrupt",
     .type = KEY_CHOICE,
     .offset = offsetof(struct run_attribute, corrupt),
     .choices = {"mean", "zero", "swap", "prompt"}},
    {.name = "gradient", .type = KEY_TEXT, .offset = offsetof(struct run_attribute, gradient)},
    {.name = "metric", .type = KEY_CHOICE, .offset = offsetof(struct run_attribute, metric), .choices = {"direction", "code"}},
    {.name = "exact", .type = KEY_INT, .offset = offsetof(struct run_attribute, exact), .high = 1 << 20, .fallback = 16},
    {.name = "maps", .type = KEY_INT, .offset = offsetof(struct run_attribute, maps), .high = 1024, .fallback = 4},
};

static const struct key evaluate_keys[] = {
    {.name = "name", .type = KEY_TEXT, .offset = offsetof(struct run_evaluate, name), .required = true},
    DATASET_KEYS(offsetof(struct run_evaluate, set)),
    {.name = "task", .type = KEY_CHOICE, .offset = offsetof(struct run_evaluate, task), .choices = {"auto", "vqa", "vsr"}},
    {.name = "split_by", .type = KEY_TEXT, .offset = offsetof(struct run_evaluate, split_by)},
    {.name = "max_new_tokens",
     .type = KEY_INT,
     .offset = offsetof(struct run_evaluate, max_new_tokens),
     .low = 1,
     .high = 1 << 20,
     .fallback = 16},
};

static const struct key intervene_keys[] = {
    {.name = "name", .type = KEY_TEXT, .offset = offsetof(struct run_intervene, name), .required = true},
    {.name = "edit", .type = KEY_PATH, .offset = offsetof(struct run_intervene, edit)},
    {.name = "features_of", .type = KEY_TEXT, .offset = offsetof(struct run_intervene, features_of)},
    {.name = "heads_of", .type = KEY_TEXT, .offset = offsetof(struct run_intervene, heads_of)},
    {.name = "top", .type = KEY_INT, .offset = offsetof(struct run_intervene, top), .high = 1 << 20},
    {.name = "on", .type = KEY_OTHER},
    {.name = "controls", .type = KEY_INT, .offset = offsetof(struct run_intervene, controls), .high = 10000, .fallback = 20},
    {.name = "control", .type = KEY_SWITCH, .offset = offsetof(struct run_intervene, directions), .choices = {"matched", "directions"}},
};

static const struct key steer_keys[] = {
    {.name = "name", .type = KEY_TEXT, .offset = offsetof(struct run_steer, name), .required = true},
    {.name = "train", .type = KEY_OTHER},
    {.name = "dev", .type = KEY_OTHER},
    {.name = "test", .type = KEY_OTHER},
    {.name = "task", .type = KEY_CHOICE, .offset = offsetof(struct run_steer, task), .choices = {"auto", "vqa", "vsr"}},
    {.name = "max_new_tokens",
     .type = KEY_INT,
     .offset = offsetof(struct run_steer, max_new_tokens),
     .low = 1,
     .high = 1 << 20,
     .fallback = 16},
    {.name = "method",
     .type = KEY_CHOICE,
     .offset = offsetof(struct run_steer, method),
     .choices = {"caa", "mmdiff-scale", "mmdiff-sum", "decoder"}},
    {.name = "contrast", .type = KEY_SWITCH, .offset = offsetof(struct run_steer, outcomes), .choices = {"answers", "outcomes"}},
    {.name = "sae", .type = KEY_PATH, .offset = offsetof(struct run_steer, sae)},
    {.name = "feature", .type = KEY_INT, .offset = offsetof(struct run_steer, feature), .low = -1, .high = 1 << 30, .fallback = -1},
    {.name = "layer", .type = KEY_INT, .offset = offsetof(struct run_steer, layer), .low = -1, .high = 1 << 16, .fallback = -1},
    {.name = "factor", .type = KEY_REAL, .offset = offsetof(struct run_steer, factor), .low = -1e6, .high = 1e6, .fallback = 1},
    {.name = "layers", .type = KEY_OTHER},
    {.name = "strengths", .type = KEY_OTHER},
    {.name = "controls", .type = KEY_INT, .offset = offsetof(struct run_steer, controls), .high = 10000, .fallback = 20},
};

/* {"kind": "spatial", "label": 1}: texts, numbers and booleans that a line must have. */
static int read_where(const struct reader *r, struct dataset *set, const char *where, const json_t *o, json_t *shown) {
    const json_t *v = json_object_get(o, "where");
    const char *name;
    json_t *value;
    if (!v || json_is_null(v)) return json_object_set_new(shown, "where", json_null());
    if (!json_is_object(v)) return keys_bad_value(r, where, "where", v, "an object of keys and values");
    json_object_foreach((json_t *)(uintptr_t)v, name, value)
        if (json_is_array(value) || json_is_object(value) || json_is_null(value))
            return keys_bad_value(r, where, "where", v, "a text, a number or true or false for every key");
    set->where = json_deep_copy(v);
    return json_object_set_new(shown, "where", json_deep_copy(v));
}

static int read_dataset(const struct reader *r, struct dataset *set, const char *where, const char *name, const json_t *o, json_t *shown) {
    char inner[160];
    const json_t *v = json_object_get(o, name);
    json_t *one = json_object();
    json_object_set_new(shown, name, one);
    snprintf(inner, sizeof inner, "%s.%s", where, name);
    if (!json_is_object(v)) return fail(r->err, "%s: \"%s\" is missing; expected an object with \"data\"", r->file, inner);
    return keys_read(r, set, TABLE(dataset_keys), inner, v, one) || read_where(r, set, inner, v, one) ? -1 : 0;
}

/* A list of objects: *n of them, or none when absent. */
static int list_of(const struct reader *r, const char *name, const json_t *v, json_t **shown, size_t *n) {
    *n = 0;
    *shown = NULL;
    if (!v) return 0;
    if (!json_is_array(v) || json_array_size(v) == 0) return keys_bad_value(r, "", name, v, "a list of objects");
    *n = json_array_size(v);
    *shown = json_array();
    return 0;
}

int read_select(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown) {
    size_t n;
    if (list_of(r, "select", v, shown, &n)) return -1;
    c->select = memory_take(n + 1, sizeof *c->select);
    for (size_t i = 0; i < n; i++) {
        char where[64];
        const json_t *o = json_array_get(v, i);
        struct run_select *one = &c->select[c->n_select++];
        json_t *out = json_object();
        json_array_append_new(*shown, out);
        snprintf(where, sizeof where, "select[%zu]", i);
        if (!json_is_object(o)) return fail(r->err, "%s: \"%s\": expected an object", r->file, where);
        if (keys_read(r, one, TABLE(select_keys), where, o, out) || read_dataset(r, &one->target, where, "target", o, out) ||
            read_dataset(r, &one->general, where, "general", o, out))
            return -1;
        for (size_t j = 0; j < i; j++)
            if (!strcmp(c->select[j].task, one->task))
                return fail(r->err, "%s: \"%s.task\": \"%s\" stands there twice", r->file, where, one->task);
    }
    return 0;
}

int read_attribute(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown) {
    size_t n;
    if (list_of(r, "attribute", v, shown, &n)) return -1;
    c->attribute = memory_take(n + 1, sizeof *c->attribute);
    for (size_t i = 0; i < n; i++) {
        char where[64];
        const json_t *o = json_array_get(v, i);
        struct run_attribute *one = &c->attribute[c->n_attribute++];
        json_t *out = json_object();
        bool known = false;
        json_array_append_new(*shown, out);
        snprintf(where, sizeof where, "attribute[%zu]", i);
        if (!json_is_object(o)) return fail(r->err, "%s: \"%s\": expected an object", r->file, where);
        if (keys_read(r, one, TABLE(attribute_keys), where, o, out) || read_where(r, &one->set, where, o, out)) return -1;
        for (int j = 0; j < c->n_select; j++) known = known || !strcmp(c->select[j].task, one->features_of);
        if (!known) return keys_bad_value(r, where, "features_of", json_object_get(o, "features_of"), "the name of a task of \"select\"");
        enum attribute_gradient gradient;
        int steps;
        if (one->gradient && attribute_gradient_read(one->gradient, &gradient, &steps, r->err))
            return error_context(r->err, "%s: \"%s.gradient\"", r->file, where);
        for (size_t j = 0; j < i; j++)
            if (!strcmp(c->attribute[j].target, one->target))
                return fail(r->err, "%s: \"%s.target\": \"%s\" stands there twice", r->file, where, one->target);
    }
    return 0;
}

int read_evaluate(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown) {
    size_t n;
    if (list_of(r, "evaluate", v, shown, &n)) return -1;
    c->evaluate = memory_take(n + 1, sizeof *c->evaluate);
    for (size_t i = 0; i < n; i++) {
        char where[64];
        const json_t *o = json_array_get(v, i);
        struct run_evaluate *one = &c->evaluate[c->n_evaluate++];
        json_t *out = json_object();
        json_array_append_new(*shown, out);
        snprintf(where, sizeof where, "evaluate[%zu]", i);
        if (!json_is_object(o)) return fail(r->err, "%s: \"%s\": expected an object", r->file, where);
        if (keys_read(r, one, TABLE(evaluate_keys), where, o, out) || read_where(r, &one->set, where, o, out)) return -1;
        for (size_t j = 0; j < i; j++)
            if (!strcmp(c->evaluate[j].name, one->name))
                return fail(r->err, "%s: \"%s.name\": \"%s\" stands there twice", r->file, where, one->name);
    }
    return 0;
}

/* "on": names of data sets of "evaluate". */
static int read_on(const struct reader *r, struct run_config *c, struct run_intervene *one, const char *where, const json_t *o,
                   json_t *shown) {
    const json_t *v = json_object_get(o, "on"), *item;
    size_t i;
    json_object_set_new(shown, "on", v ? json_deep_copy(v) : json_null());
    if (!v || json_is_null(v)) return 0;
    if (!json_is_array(v) || !json_array_size(v)) return keys_bad_value(r, where, "on", v, "a list of names of data sets of \"evaluate\"");
    one->on = memory_take(json_array_size(v), sizeof *one->on);
    json_array_foreach(v, i, item) {
        bool known = false;
        for (int j = 0; j < c->n_evaluate && json_is_string(item); j++)
            known = known || !strcmp(c->evaluate[j].name, json_string_value(item));
        if (!known) return keys_bad_value(r, where, "on", v, "names of data sets of \"evaluate\"");
        one->on[one->n_on++] = memory_string(json_string_value(item));
    }
    return 0;
}

int read_intervene(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown) {
    size_t n;
    if (list_of(r, "intervene", v, shown, &n)) return -1;
    if (n && !c->n_evaluate) return fail(r->err, "%s: \"intervene\" scores the data sets of \"evaluate\", which is missing", r->file);
    c->intervene = memory_take(n + 1, sizeof *c->intervene);
    for (size_t i = 0; i < n; i++) {
        char where[64];
        const json_t *o = json_array_get(v, i);
        struct run_intervene *one = &c->intervene[c->n_intervene++];
        json_t *out = json_object();
        json_array_append_new(*shown, out);
        snprintf(where, sizeof where, "intervene[%zu]", i);
        if (!json_is_object(o)) return fail(r->err, "%s: \"%s\": expected an object", r->file, where);
        if (keys_read(r, one, TABLE(intervene_keys), where, o, out) || read_on(r, c, one, where, o, out)) return -1;
        if (!one->edit + !one->features_of + !one->heads_of != 2)
            return fail(r->err, "%s: \"%s\": give one of \"edit\", \"features_of\", \"heads_of\"", r->file, where);
        if (one->controls > 0 && one->controls < 20)
            return fail(r->err, "%s: \"%s.controls\": expected 0 or at least 20, found %d", r->file, where, one->controls);
        for (size_t j = 0; j < i; j++)
            if (!strcmp(c->intervene[j].name, one->name))
                return fail(r->err, "%s: \"%s.name\": \"%s\" stands there twice", r->file, where, one->name);
    }
    return 0;
}

/* "layers": "all" or a rising list; "strengths": a list of numbers. */
static int read_sweep(const struct reader *r, struct run_steer *one, const char *where, const json_t *o, json_t *shown) {
    static const double published[] = {0.5, 1, 2, 5};
    const json_t *layers = json_object_get(o, "layers"), *strengths = json_object_get(o, "strengths"), *item;
    const bool all = !layers || json_is_null(layers) || (json_is_string(layers) && !strcmp(json_string_value(layers), "all"));
    size_t i, n = json_is_array(strengths) ? json_array_size(strengths) : strengths ? 0 : 4;
    json_object_set_new(shown, "layers", all ? json_string("all") : json_deep_copy(layers));
    if (!all && (!json_is_array(layers) || !json_array_size(layers)))
        return keys_bad_value(r, where, "layers", layers, "\"all\" or a list");
    one->layers = memory_take(all ? 1 : json_array_size(layers), sizeof *one->layers);
    for (i = 0; !all && i < json_array_size(layers); i++) {
        item = json_array_get(layers, i);
        const json_int_t l = json_integer_value(item);
        if (!json_is_integer(item) || l < 0 || l > 1 << 16 || (i && l <= one->layers[i - 1]))
            return keys_bad_value(r, where, "layers", layers, "a rising list of layers from 0 on");
        one->layers[one->n_layers++] = (int)l;
    }
    if (!n) return keys_bad_value(r, where, "strengths", strengths, "a list of numbers");
    one->strengths = memory_take(n, sizeof *one->strengths);
    json_t *out = json_array();
    json_object_set_new(shown, "strengths", out);
    for (i = 0; i < n; i++) {
        item = strengths ? json_array_get(strengths, i) : NULL;
        if (strengths && !json_is_number(item)) return keys_bad_value(r, where, "strengths", strengths, "a list of numbers");
        one->strengths[one->n_strengths++] = strengths ? json_number_value(item) : published[i];
        json_array_append_new(out, json_real(one->strengths[i]));
    }
    return 0;
}

int read_steer(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown) {
    size_t n;
    if (list_of(r, "steer", v, shown, &n)) return -1;
    c->steer = memory_take(n + 1, sizeof *c->steer);
    for (size_t i = 0; i < n; i++) {
        char where[64];
        const json_t *o = json_array_get(v, i);
        struct run_steer *one = &c->steer[c->n_steer++];
        json_t *out = json_object();
        json_array_append_new(*shown, out);
        snprintf(where, sizeof where, "steer[%zu]", i);
        if (!json_is_object(o)) return fail(r->err, "%s: \"%s\": expected an object", r->file, where);
        if (keys_read(r, one, TABLE(steer_keys), where, o, out)) return -1;
        const bool trains = strcmp(steer_methods[one->method], "decoder") != 0, feature = strcmp(steer_methods[one->method], "caa") != 0;
        if (trains == !json_is_object(json_object_get(o, "train")))
            return fail(r->err, "%s: \"%s.train\": method %s %s", r->file, where, steer_methods[one->method],
                        trains ? "needs an object with \"data\"" : "is not trained; leave it out");
        if ((trains && read_dataset(r, &one->train, where, "train", o, out)) || read_dataset(r, &one->dev, where, "dev", o, out) ||
            read_dataset(r, &one->test, where, "test", o, out) || read_sweep(r, one, where, o, out))
            return -1;
        if (feature != (one->sae != NULL) || feature != (one->feature >= 0))
            return fail(r->err, "%s: \"%s\": method %s %s \"sae\" and \"feature\"", r->file, where, steer_methods[one->method],
                        feature ? "needs" : "does not take");
        if (one->controls > 0 && one->controls < 20)
            return fail(r->err, "%s: \"%s.controls\": expected 0 or at least 20, found %d", r->file, where, one->controls);
        for (size_t j = 0; j < i; j++)
            if (!strcmp(c->steer[j].name, one->name))
                return fail(r->err, "%s: \"%s.name\": \"%s\" stands there twice", r->file, where, one->name);
        for (int j = 0; j < c->n_intervene; j++)
            if (!strcmp(c->intervene[j].name, one->name))
                return fail(r->err, "%s: \"%s.name\": \"%s\" is an intervention's name already", r->file, where, one->name);
    }
    return 0;
}

static void free_dataset(struct dataset *d) {
    free(d->data), free(d->images), free(d->annotations), free(d->keywords), free(d->ask);
    json_decref(d->where);
}

void free_sections(struct run_config *c) {
    for (int i = 0; i < c->n_select; i++) {
        free(c->select[i].task), free(c->select[i].prompts);
        free_dataset(&c->select[i].target), free_dataset(&c->select[i].general);
    }
    for (int i = 0; i < c->n_attribute; i++) {
        free(c->attribute[i].target), free(c->attribute[i].features_of), free(c->attribute[i].gradient);
        free_dataset(&c->attribute[i].set);
    }
    for (int i = 0; i < c->n_evaluate; i++) {
        free(c->evaluate[i].name), free(c->evaluate[i].split_by);
        free_dataset(&c->evaluate[i].set);
    }
    for (int i = 0; i < c->n_intervene; i++) {
        struct run_intervene *x = &c->intervene[i];
        for (int j = 0; j < x->n_on; j++) free(x->on[j]);
        free(x->name), free(x->edit), free(x->features_of), free(x->heads_of), free(x->on);
    }
    for (int i = 0; i < c->n_steer; i++) {
        struct run_steer *x = &c->steer[i];
        free_dataset(&x->train), free_dataset(&x->dev), free_dataset(&x->test);
        free(x->name), free(x->sae), free(x->layers), free(x->strengths);
    }
    free(c->select), free(c->attribute), free(c->evaluate), free(c->intervene), free(c->steer);
}
