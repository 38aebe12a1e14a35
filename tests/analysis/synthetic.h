/* synthetic.h - a run.db with invented but plausible numbers, pictures and questions: the report and the views can be tested, and
 * looked at, before any model has run. Seeded; the same rows every time. */
#ifndef TESTS_ANALYSIS_SYNTHETIC_H
#define TESTS_ANALYSIS_SYNTHETIC_H
#include "analysis/run.h"
#include <math.h>
#include <png.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct synthetic {
    int layers, features, samples;
};

static uint64_t synthetic_state = 88172645463325252ull;

static inline double synthetic_uniform(void) {
    synthetic_state ^= synthetic_state << 13;
    synthetic_state ^= synthetic_state >> 7;
    synthetic_state ^= synthetic_state << 17;
    return (double)(synthetic_state >> 11) / 9007199254740992.0;
}

static inline double synthetic_normal(void) {
    return sqrt(-2 * log(synthetic_uniform() + 1e-300)) * cos(6.283185307179586 * synthetic_uniform());
}

/* A 64x64 picture: two discs and a square on a pale ground. */
static inline png_bytep synthetic_picture(size_t *bytes) {
    static const uint8_t colors[4][3] = {{200, 40, 40}, {40, 90, 200}, {30, 150, 70}, {230, 190, 30}};
    uint8_t pixels[64][64][3];
    memset(pixels, 0, sizeof pixels);
    int ground = 200 + (int)(50 * synthetic_uniform());
    memset(pixels, ground, sizeof pixels);
    for (int shape = 0; shape < 3; shape++) {
        const uint8_t *color = colors[(int)(4 * synthetic_uniform())];
        double cx = 10 + 44 * synthetic_uniform(), cy = 10 + 44 * synthetic_uniform(), radius = 6 + 6 * synthetic_uniform();
        for (int y = 0; y < 64; y++)
            for (int x = 0; x < 64; x++)
                if (shape == 2 ? fmax(fabs(x - cx), fabs(y - cy)) < radius : hypot(x - cx, y - cy) < radius) memcpy(pixels[y][x], color, 3);
    }
    png_image image = {.version = PNG_IMAGE_VERSION, .width = 64, .height = 64, .format = PNG_FORMAT_RGB};
    png_alloc_size_t size = 0;
    if (!png_image_write_to_memory(&image, NULL, &size, 0, pixels, 0, NULL)) return NULL;
    png_bytep png = malloc(size);
    if (png && !png_image_write_to_memory(&image, png, &size, 0, pixels, 0, NULL)) {
        free(png);
        return NULL;
    }
    *bytes = size;
    return png;
}

/* BOS, 4 template tokens, 64 patches, question, 3 template tokens. */
static inline int synthetic_sample(sqlite3 *db, long sample, uint8_t *kinds, struct error *err) {
    static const char *const words[] = {"Is", " the", " red", " <circle>", " left", " of", " the", " blue", " \"square\"", "?"};
    json_t *tokens = json_array();
    int t = 0;
    for (int i = 0; i < 5 + 64 + 10 + 3; i++) {
        bool image = i >= 5 && i < 69, question = i >= 69 && i < 79;
        kinds[t++] = (uint8_t)(i == 0 ? 0 : image ? 1 : question ? 3 : 2);
        json_array_append_new(tokens, json_string(image      ? ""
                                                  : question ? words[i - 69]
                                                  : i == 0   ? "<|begin_of_text|>"
                                                             : "<|start_header_id|>"));
    }
    char *text = json_dumps(tokens, 0);
    size_t bytes = 0;
    png_bytep png = synthetic_picture(&bytes);
    int status =
        run_db_run(db, err, "INSERT INTO samples(sample, id, image, question, answer, tokens, kinds, picture) VALUES(?,?,?,?,?,?,?,?)",
                   "itttttbb", sample, "1", "images/a.png", "Is the red <circle> left of the blue \"square\"?", "yes", text,
                   (const void *)kinds, (size_t)t, (const void *)png, bytes);
    free(png);
    free(text);
    json_decref(tokens);
    return status ? -1 : t;
}

static inline int synthetic_metrics(sqlite3 *db, const struct synthetic *s, struct error *err) {
    static const char *const regimes[] = {"full", "image", "text", "random", "base", "base_text", "base_native"};
    static const double level[] = {0.16, 0.21, 0.07, 0.30, 0.62, 0.55, 0.9};
    for (int r = 0; r < 7; r++)
        for (int l = 0; l < s->layers; l++) {
            double fvu = level[r] * (0.7 + 0.6 * l / s->layers + 0.05 * synthetic_normal());
            struct layer_row row = {l,           regimes[r], 40000 + 1000 * r, fvu, r == 2 ? fvu / 3 : fvu * 0.97, 16 - r * 0.4,
                                    40 + 30 * r, s->features};
            if (run_db_layer(db, &row, err)) return -1;
        }
    return 0;
}

static inline int synthetic_features(sqlite3 *db, const struct synthetic *s, const char *regime, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(db, &q, err, "INSERT INTO features VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?)", "")) return -1;
    for (int l = 0; l < s->layers; l++)
        for (int f = 0; f < s->features; f++) {
            double visual = synthetic_uniform(), text = pow(10, -2.5 + 1.1 * synthetic_normal());
            double image = visual < 0.08 ? 0 : text * pow(10, 0.5 * synthetic_normal() + (visual > 0.9 ? 1.2 : 0));
            double cosine =
                1 - fabs(0.03 * synthetic_normal()) - (visual > 0.85 ? 0.25 * synthetic_uniform() * (0.4 + l / (double)s->layers) : 0);
            double values[] = {l,
                               0,
                               f,
                               image,
                               text,
                               cosine,
                               cosine * 0.98,
                               fmin(1, image),
                               fmin(1, text),
                               image > 0.01 && cosine <= 0.94,
                               image * 1.4,
                               image * 0.3,
                               0.11,
                               0.05};
            for (int i = 0; i < 14; i++)
                if (i == 1)
                    sqlite3_bind_text(q, 2, regime, -1, SQLITE_STATIC);
                else if (i == 0 || i == 2 || i == 9)
                    sqlite3_bind_int(q, i + 1, (int)values[i]);
                else
                    sqlite3_bind_double(q, i + 1, values[i]);
            sqlite3_step(q);
            sqlite3_reset(q);
        }
    sqlite3_finalize(q);
    return 0;
}

/* One task whose features are the adapted ones of even index, and two evaluations. */
static inline int synthetic_task(sqlite3 *db, const char *name, struct error *err) {
    return run_db_run(db, err, "INSERT INTO tasks VALUES(?,1000,2000,3,0.05,0,600,400,0,1200,800)", "t", name) ||
                   run_db_run(
                       db, err,
                       "INSERT INTO task_rows SELECT ?, layer, feature, CASE WHEN adapted THEN 300 + feature % 7 ELSE feature % 5 END,"
                       " feature % 3, CASE WHEN feature % 3 = 0 AND feature % 5 = 0 THEN NULL WHEN feature % 3 = 0 THEN 1e9 ELSE 0.1 * (1 "
                       "+ "
                       "feature % 90) END, 0, -0.5 * (feature % 800), 0, adapted, adapted, CASE WHEN adapted THEN feature % 2 = 0 END, 1, "
                       "2, 3, 4, 5, 6 FROM features WHERE regime = 'text'",
                       "t", name) ||
                   run_db_exec(
                       db, err,
                       "INSERT INTO scores VALUES('VSR <test>', 'vsr', 'all', 'all', 600, 590), ('VSR <test>', 'vsr', 'all', 'left of', "
                       "100, 99), ('VQA', 'vqa', 'all', 'all', 1200, 1100.3), ('VQA', 'vqa', 'spatial', 'yes/no', 200, 190)")
               ? -1
               : 0;
}

/* Heads, attention, interventions and a sweep of invented numbers; layer and feature: one that an intervention removes. */
static inline int synthetic_causes(sqlite3 *db, int layer, int feature, struct error *err) {
    float weights[64];
    char edits[256];
    for (int i = 0; i < 64; i++) weights[i] = (float)(i % 9) / 64;
    snprintf(edits, sizeof edits,
             "[{\"op\":\"project_out\",\"vector\":{\"sae\":\"/r/sae/text/layer_%d\",\"feature\":%d}},{\"op\":\"head\",\"heads\":[1]}]",
             layer, feature);
    for (long l = 0; l < 3; l++)
        for (long h = 0; h < 4; h++) {
            double score = (double)(l + 1) * (h % 2 ? -0.125 : 0.25) + 0.01 * (double)h;
            if (run_db_run(db, err, "INSERT INTO heads VALUES('task:<a>',?,?,'corrupt','mean',?,?)", "iidd", l, h, score,
                           (l + h) % 2 ? 2 * score : NAN))
                return -1;
        }
    char target[32];
    snprintf(target, sizeof target, "L%dF%d", layer, feature);
    return run_db_run(db, err, "INSERT INTO heads VALUES(?,0,3,'corrupt','mean',0.75,NULL)", "t", target) ||
                   run_db_run(db, err, "INSERT INTO attention SELECT 'task:<a>', 1, 2, sample, ? FROM samples", "b", (const void *)weights,
                              sizeof weights) ||
                   run_db_run(db, err,
                              "INSERT INTO effects VALUES('no "
                              "<features>','VSR',600,0.98,0.8,-0.18,-0.21,-0.15,110,2,1e-9,0,-0.01,-0.03,0.01,20,0,?1),"
                              "('no \"heads\"','VSR',600,0.98,0.97,-0.01,-0.03,0.01,9,3,0.1,0,NULL,NULL,NULL,0,0,'[]')",
                              "t", edits) ||
                   run_db_exec(db, err,
                               "INSERT INTO effect_relations VALUES('no <features>','VSR','left of',90,0.9,0.5,-0.4,-0.5,-0.3,36,0,1e-5);"
                               "INSERT INTO steering VALUES('CAA','d.jsonl','dev',2,0,300,0.7,0),('CAA','d.jsonl','dev',2,1,300,0.8,1),"
                               "('CAA','d.jsonl','dev',4,0,300,0.7,0),('CAA','d.jsonl','dev',4,1,300,0.6,0),"
                               "('CAA','t.jsonl','test',2,0,300,0.7125,0),('CAA','t.jsonl','test',2,1,300,0.775,1)")
               ? -1
               : 0;
}

/* Fills an opened run.db. */
static inline int synthetic_fill(sqlite3 *db, const struct synthetic *s, struct error *err) {
    uint8_t kinds[128];
    float values[128];
    int tokens = 0;
    synthetic_state = 88172645463325252ull;
    if (run_db_exec(db, err, "BEGIN") || synthetic_metrics(db, s, err) || synthetic_features(db, s, "text", err) ||
        synthetic_features(db, s, "full", err))
        return -1;
    for (long i = 0; i < s->samples; i++)
        if ((tokens = synthetic_sample(db, i, kinds, err)) < 0) return -1;
    for (int feature = 0; feature < 6; feature++)
        for (long rank = 0; rank < 6; rank++) {
            int peak = 5 + (int)(64 * synthetic_uniform());
            for (int t = 0; t < tokens; t++) {
                double distance = kinds[t] == 1 ? hypot((t - 5) % 8 - (peak - 5) % 8, (t - 5) / 8 - (peak - 5) / 8) : 9;
                values[t] = (float)(distance < 3                                 ? 2 * exp(-distance)
                                    : kinds[t] == 3 && synthetic_uniform() < 0.3 ? synthetic_uniform()
                                                                                 : 0);
            }
            if (run_db_run(db, err,
                           "INSERT INTO examples SELECT ?1, 'text', feature, ?2, ?3, ?4, 'image', ?5, ?6 FROM features"
                           " WHERE regime = 'text' AND layer = ?1 AND adapted ORDER BY energy_image DESC LIMIT 1 OFFSET ?7",
                           "iiiidbi", (long)(feature % s->layers), rank, (long)((feature * 5 + rank) % s->samples), (long)peak,
                           2.0 - 0.1 * (double)rank, (const void *)values, (size_t)tokens * sizeof *values, (long)(feature / s->layers)))
                return -1;
        }
    if (run_db_fact(db, "train", "device", "cpu, 2 threads", err) || run_db_fact_real(db, "train", "tokens_per_second", 15321, err) ||
        run_db_fact_real(db, "diff", "eps", 0.01, err) || run_db_fact_real(db, "diff", "percentile", 25, err) ||
        run_db_fact_real(db, "diff", "cosine_threshold.text", 0.94, err) ||
        run_db_fact_real(db, "diff", "cosine_threshold.full", 0.94, err) || run_stage_finish(db, "train", "a", 101.5, err) ||
        run_stage_finish(db, "diff", "b", 22.5, err))
        return -1;
    return run_db_exec(db, err, "COMMIT");
}
#endif
