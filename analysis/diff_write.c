/* diff_write.c - the rows of `diff`, in one transaction that replaces those of an earlier run. */
#include "analysis/diff.h"
#include "kernels/device.h"
#include <stdio.h>

static double per_token(double sum, long tokens) { return tokens ? sum / (double)tokens : 0; }

static int write_features(sqlite3 *db, const struct diff_job *job, const struct diff_counts *n, struct error *err) {
    sqlite3_stmt *q = NULL;
    size_t M = (size_t)job->M;
    int status = 0;
    if (run_db_prepare(db, &q, err,
                       "INSERT INTO features(layer, regime, feature, energy_image, energy_text, decoder_cosine, encoder_cosine, "
                       "fire_image, fire_text, adapted,"
                       " energy_patches, energy_words, fire_patches, fire_words) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                       ""))
        return -1;
    sqlite3_bind_int(q, 1, job->layer);
    sqlite3_bind_text(q, 2, regime_names[job->regime], -1, SQLITE_STATIC);
    for (int f = 0; f < job->M && status == 0; f++) {
        size_t i = (size_t)f;
        sqlite3_bind_int(q, 3, f);
        sqlite3_bind_double(q, 4, diff_energy(job, n, f, true));
        sqlite3_bind_double(q, 5, diff_energy(job, n, f, false));
        sqlite3_bind_double(q, 6, (double)job->decoder_cosine[f]);
        sqlite3_bind_double(q, 7, (double)job->encoder_cosine[f]);
        sqlite3_bind_double(q, 8, diff_fire(job, n, f, true));
        sqlite3_bind_double(q, 9, diff_fire(job, n, f, false));
        sqlite3_bind_int(q, 10, job->adapted[f]);
        sqlite3_bind_double(q, 11, per_token(job->energy[DIFF_PATCHES * M + i], n->tokens[DIFF_PATCHES]));
        sqlite3_bind_double(q, 12, per_token(job->energy[DIFF_WORDS * M + i], n->tokens[DIFF_WORDS]));
        sqlite3_bind_double(q, 13, per_token((double)job->fired[DIFF_PATCHES * M + i], n->tokens[DIFF_PATCHES]));
        sqlite3_bind_double(q, 14, per_token((double)job->fired[DIFF_WORDS * M + i], n->tokens[DIFF_WORDS]));
        if (sqlite3_step(q) != SQLITE_DONE) status = fail(err, "%s: %s", sqlite3_db_filename(db, "main"), sqlite3_errmsg(db));
        sqlite3_reset(q);
    }
    sqlite3_finalize(q);
    return status;
}

static int write_norms(sqlite3 *db, const struct diff_job *job, int f, struct error *err) {
    if (!job->base_norm) return 0;
    return run_db_run(
        db, err, "INSERT OR REPLACE INTO norms(layer, regime, feature, decoder, encoder, base_decoder, base_encoder) VALUES(?,?,?,?,?,?,?)",
        "itidddd", (long)job->layer, regime_names[job->regime], (long)f, (double)job->norm[f], (double)job->encoder_norm[f],
        (double)job->base_norm[f], (double)job->base_encoder_norm[f]);
}

int diff_write_examples(sqlite3 *db, const struct run_config *c, const struct diff_job *jobs, const struct samples *s, long offset,
                        long first, long step, const struct diff_examples *e, struct error *err) {
    for (int i = 0; i < e->n_samples; i++) {
        const struct diff_sample *row = &e->sample[i];
        const struct sample *line = &s->at[offset + row->index];
        if (run_db_run(db, err, "INSERT INTO samples(sample, id, image, question, answer, tokens, kinds, picture) VALUES(?,?,?,?,?,?,?,?)",
                       "itttttbb", first + step * row->index, line->id, line->image,
                       line->question ? line->question
                       : line->prompt ? line->prompt
                                      : line->caption,
                       line->answer, row->tokens, (const void *)row->kinds, (size_t)row->n_tokens, (const void *)row->picture,
                       row->picture_bytes))
            return -1;
    }
    for (int i = 0; i < e->count; i++) {
        const struct diff_example *x = &e->at[i];
        if (run_db_run(
                db, err,
                "INSERT INTO examples(layer, regime, feature, rank, sample, position, kind, value, token_values) VALUES(?,?,?,?,?,?,?,?,?)",
                "itiiiitdb", (long)jobs[x->job].layer, regime_names[c->diff_regime], (long)x->feature, (long)x->rank,
                first + step * x->top.sample, (long)x->top.position, token_kind_names[x->kind], (double)x->top.value,
                (const void *)x->values, (size_t)x->tokens * sizeof *x->values))
            return -1;
        if (x->rank == 0 && write_norms(db, &jobs[x->job], x->feature, err)) return -1;
    }
    return 0;
}

static int write_facts(sqlite3 *db, const struct run_config *c, const struct diff_job *jobs, int n_jobs, const struct diff_counts *n,
                       const double *thresholds, struct error *err) {
    char name[64];
    bool present[REGIME_COUNT] = {false};
    for (int j = 0; j < n_jobs; j++) present[jobs[j].regime] = true;
    for (int r = 0; r < REGIME_COUNT; r++) {
        snprintf(name, sizeof name, "cosine_threshold.%s", regime_names[r]);
        if (present[r] && run_db_fact_real(db, "diff", name, thresholds[r], err)) return -1;
    }
    return run_db_fact_real(db, "diff", "eps", c->diff_eps, err) || run_db_fact_real(db, "diff", "percentile", c->diff_percentile, err) ||
                   run_db_fact(db, "diff", "tokens_of_E_v", n->text_only ? "text" : "all", err) ||
                   run_db_fact_real(db, "diff", "tokens_image_rows", (double)n->tokens[DIFF_PATCHES], err) ||
                   run_db_fact_real(db, "diff", "tokens_question_and_answer", (double)n->tokens[DIFF_WORDS], err) ||
                   run_db_fact_real(db, "diff", "tokens_template", (double)n->tokens[DIFF_TEMPLATE], err) ||
                   run_db_fact_real(db, "diff", "tokens_base_llm", (double)n->tokens[DIFF_BASE], err) ||
                   run_db_fact(db, "diff", "code_units", "code times decoder norm (unit-decoder convention)", err)
               ? -1
               : 0;
}

int diff_write(sqlite3 *db, const struct run_config *c, const struct diff_job *jobs, int n_jobs, const struct diff_counts *n,
               const double *thresholds, const struct samples *s, long first, const struct diff_examples *e, struct error *err) {
    if (run_db_exec(db, err, "BEGIN IMMEDIATE")) return -1;
    int status = run_db_exec(db, err,
                             "DELETE FROM attention; DELETE FROM examples; DELETE FROM samples; DELETE FROM norms; DELETE FROM features; "
                             "DELETE FROM facts WHERE stage = 'diff';");
    for (int j = 0; j < n_jobs && status == 0; j++) status = write_features(db, &jobs[j], n, err);
    if (status == 0) status = diff_write_examples(db, c, jobs, s, first, first, 1, e, err);
    if (status == 0) status = write_facts(db, c, jobs, n_jobs, n, thresholds, err);
    if (status == 0) status = run_db_exec(db, err, "COMMIT");
    if (status) {
        struct error ignored;
        run_db_exec(db, &ignored, "ROLLBACK");
    }
    return status;
}
