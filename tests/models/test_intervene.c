/* test_intervene.c - matched controls and paired interventions on the small world: what is drawn, and that running everything together
 * gives what each list gives by itself. */
#include "model_test.h"
#include "analysis/intervene.h"
#include "analysis/steer.h"
#include "host/file.h"
#include "tests/world.h"
#include <math.h>

#define VSR WORLD "/data/vsr_test.jsonl"
#define SAE WORLD "/saes/L5R-8x"

static void open_list(struct edit_list *l, const struct model *m, const char *text) {
    json_t *list = json_loads(text, 0, NULL);
    assert_non_null(list);
    MUST(edit_list_read(l, m, list, "list", NULL, err));
    json_decref(list);
}

/* How often each feature of the dictionary fires behind the image, from kept rows and the definition of JumpReLU. */
static long *count_firing(struct model *m, const struct samples *s, size_t n, const struct sae_host *sae) {
    long *fired = calloc((size_t)sae->M, sizeof *fired);
    for (size_t i = 0; i < n; i++) {
        struct batch b;
        struct kept post = {.point = PROBE_RESID_POST};
        const struct probe probe = {PROBE_RESID_POST, 5, keep_probe, &post};
        MUST(model_batch(m, &b, s, i, 1, false, err));
        MUST(model_forward(m, &b, &probe, 1, NULL, err));
        uint8_t *after = malloc((size_t)b.n_tokens);
        batch_after_image(&b, after);
        for (int t = 0; t < b.n_tokens; t++)
            for (int f = 0; f < sae->M && after[t]; f++) {
                double h = (double)sae->b_e[f];
                for (int c = 0; c < sae->d; c++) h += (double)sae->E[f * sae->d + c] * (double)post.data[6][t * sae->d + c];
                fired[f] += h > (double)sae->threshold[f];
            }
        free(after);
        kept_free(&post);
        batch_free(&b);
    }
    return fired;
}

static void features_are_matched_by_firing(void **state) {
    enum { N = 12, DRAWS = 20 };
    struct model m;
    struct samples s;
    struct edit_list l, draw, again;
    struct controls *c, *other;
    struct sae_host sae;
    int different = 0;
    (void)state;
    open_model(&m, WORLD "/vlm");
    MUST(samples_open(&s, VSR, err));
    MUST(sae_load(&sae, SAE, err));
    assert_int_equal(sae.activation, SAE_JUMPRELU);
    long *fired = count_firing(&m, &s, N, &sae);
    int often = 0;
    for (int f = 0; f < sae.M; f++)
        if (labs(fired[f] - 60) < labs(fired[often] - 60)) often = f;
    char text[1024];
    snprintf(text, sizeof text,
             "[{\"op\":\"project_out\",\"vector\":{\"sae\":\"" SAE "\",\"feature\":%d},\"points\":[\"resid_post\"],\"after_image\":true},"
             "{\"op\":\"feature\",\"sae\":\"" SAE "\",\"layer\":5,\"features\":[%d,%d],\"mode\":\"subtract\",\"after_image\":true}]",
             often, (often + 1) % sae.M, (often + 2) % sae.M);
    open_list(&l, &m, text);
    MUST(controls_open(&c, &m, &l, &s, 0, N, CONTROL_MATCHED, DRAWS, 3, 5, err));
    MUST(controls_open(&other, &m, &l, &s, 0, N, CONTROL_MATCHED, DRAWS, 4, 5, err));
    /* the 2 * DRAWS nearest counts: how far may a control be? */
    double distance[8192];
    int n = 0;
    for (int f = 0; f < sae.M; f++)
        if (f < often || f > often + 2) distance[n++] = fabs(log((double)(fired[f] + 1) / (double)(fired[often] + 1)));
    const double limit = percentile(distance, (size_t)n, 100.0 * (2 * DRAWS - 1) / (n - 1)) + 1e-9;
    double worst = 0;
    for (int i = 0; i < DRAWS; i++) {
        controls_draw(c, i, &draw);
        controls_draw(other, i, &again);
        const int f = draw.at[0].features[0], *pair = draw.at[1].features;
        worst = fmax(worst, fabs(log((double)(fired[f] + 1) / (double)(fired[often] + 1))));
        assert_true(f != often && f != pair[0] && f != pair[1] && pair[0] != pair[1]);
        for (int d = 0; d < sae.d; d++) assert_true(fabs((double)(draw.at[0].vector[d] - sae.D[f * sae.d + d])) < 1e-6); /* rows are unit */
        different += f != again.at[0].features[0];
        edit_list_free(&again);
        controls_draw(c, i, &again);
        assert_true(again.at[0].features[0] == f && again.at[1].features[1] == pair[1]);
        edit_list_free(&again);
        edit_list_free(&draw);
    }
    printf("  feature %d fires %ld times; controls within a factor %.3f (allowed %.3f)\n", often, fired[often], exp(worst), exp(limit));
    assert_true(worst <= limit && different > DRAWS / 2);
    controls_draw(c, 0, &draw);
    const int barred = draw.at[0].features[0];
    edit_list_free(&draw);
    controls_close(other);
    l.saes[0]->barred = calloc((size_t)sae.M, sizeof(bool));
    l.saes[0]->barred[barred] = true;
    MUST(controls_open(&other, &m, &l, &s, 0, N, CONTROL_MATCHED, DRAWS, 3, 5, err));
    for (int i = 0; i < DRAWS; i++) {
        controls_draw(other, i, &draw);
        assert_true(draw.at[0].features[0] != barred && draw.at[1].features[0] != barred && draw.at[1].features[1] != barred);
        edit_list_free(&draw);
    }
    controls_close(c);
    controls_close(other);
    edit_list_free(&l);
    sae_host_free(&sae);
    free(fired);
    samples_free(&s);
    model_close(&m);
}

static void heads_and_directions_are_drawn(void **state) {
    struct model m;
    struct samples s;
    struct edit_list l, draw;
    struct controls *c;
    struct error why;
    int seen[WORLD_HEADS] = {0};
    (void)state;
    open_model(&m, WORLD "/vlm");
    MUST(samples_open(&s, VSR, err));
    open_list(&l, &m,
              "[{\"op\":\"head\",\"layers\":[2,3],\"heads\":[1,6],\"mode\":\"zero\"},{\"op\":\"head\",\"layers\":[3],\"heads\":[0,2,4],"
              "\"mode\":\"zero\"},"
              "{\"op\":\"project_out\",\"vector\":{\"sae\":\"" SAE "\",\"feature\":3},\"points\":[\"mlp_out\"]}]");
    MUST(controls_open(&c, &m, &l, &s, 0, 4, CONTROL_DIRECTIONS, 40, 3, 4, err));
    for (int i = 0; i < 40; i++) {
        double norm = 0, dot = 0;
        controls_draw(c, i, &draw);
        const struct edit *a = &draw.at[0], *b = &draw.at[1];
        assert_true(a->n_heads == 2 && b->n_heads == 3 && a->layers[2] && a->layers[3] && !a->layers[4] && a->heads[0] != a->heads[1]);
        assert_false((a->heads[0] == 1 && a->heads[1] == 6) || (a->heads[0] == 6 && a->heads[1] == 1));
        for (int k = 0; k < 3; k++) assert_true(b->heads[k] != a->heads[0] && b->heads[k] != a->heads[1]); /* layer 3 is in both */
        for (int k = 0; k < 2; k++) seen[a->heads[k]]++;
        for (int d = 0; d < WORLD_WIDTH; d++) {
            norm += (double)draw.at[2].vector[d] * (double)draw.at[2].vector[d];
            dot += (double)draw.at[2].vector[d] * (double)l.at[2].vector[d];
        }
        assert_true(fabs(norm - 1) < 1e-5 && fabs(dot) < 0.5);
        edit_list_free(&draw);
    }
    for (int h = 0; h < WORLD_HEADS; h++) assert_true(seen[h] > 0);
    controls_close(c);
    edit_list_free(&l);
    open_list(&l, &m, "[{\"op\":\"head\",\"layers\":[2],\"heads\":[0,1,2,3,4,5,6,7,8,9],\"mode\":\"zero\"}]");
    assert_int_equal(controls_open(&c, &m, &l, &s, 0, 4, CONTROL_MATCHED, 20, 3, 4, &why), -1);
    assert_non_null(strstr(why.text, "no others to draw"));
    edit_list_free(&l);
    open_list(&l, &m, "[]");
    assert_int_equal(controls_open(&c, &m, &l, &s, 0, 4, CONTROL_MATCHED, 20, 3, 4, &why), -1);
    assert_non_null(strstr(why.text, "--controls 0"));
    edit_list_free(&l);
    samples_free(&s);
    model_close(&m);
}

static double accuracy(struct model *m, const struct edit_list *l, const struct samples *s, size_t first, size_t count, double *scores) {
    struct edits *e;
    struct evaluation r = {.task = EVALUATE_VSR};
    int n;
    MUST(edits_open(&e, m, l, err));
    struct probe *probes = edits_before(e, NULL, 0, &n);
    MUST(evaluate_samples(m, s, first, count, probes, n, 7, &r, err));
    for (size_t i = 0; i < count && scores; i++) scores[i] = r.at[i].score;
    const double mean = r.correct / (double)r.scored;
    free(probes);
    evaluation_free(&r);
    edits_close(e);
    return mean;
}

static void together_is_as_alone(void **state) {
    enum { FIRST = 3, N = 40, DRAWS = 20 };
    struct model m;
    struct samples s;
    struct edit_list l, none, draw;
    struct intervention x = {.task = EVALUATE_VSR, .batch = 16, .controls = DRAWS, .seed = 9};
    struct controls *c;
    struct paired p;
    double base[N], after[N];
    int beyond = 0;
    (void)state;
    open_model(&m, WORLD "/vlm");
    MUST(samples_open(&s, VSR, err));
    open_list(&none, &m, "[]");
    open_list(&l, &m, "[{\"op\":\"head\",\"heads\":[0,1,2,3,5,6,7,8],\"mode\":\"zero\",\"after_image\":true}]");
    MUST(intervene(&x, &m, &l, &s, FIRST, N, err));
    const double mean = accuracy(&m, &none, &s, FIRST, N, base);
    accuracy(&m, &l, &s, FIRST, N, after);
    paired_compare(&p, base, after, N, 9);
    const struct effect *e = &x.effect;
    assert_true(p.n == N && p.delta != 0 && p.delta == e->pair.delta && p.ci_low == e->pair.ci_low && p.lost == e->pair.lost &&
                p.mcnemar_p == e->pair.mcnemar_p && fabs(p.baseline - mean) < 1e-12);
    MUST(controls_open(&c, &m, &l, &s, FIRST, N, CONTROL_MATCHED, DRAWS, 9, 16, err));
    for (int i = 0; i < DRAWS; i += 7) {
        controls_draw(c, i, &draw);
        assert_true(fabs(accuracy(&m, &draw, &s, FIRST, N, NULL) - mean - e->control_delta[i]) < 1e-12);
        edit_list_free(&draw);
    }
    controls_close(c);
    for (int i = 0; i < DRAWS; i++) beyond += p.delta < 0 ? e->control_delta[i] <= p.delta : e->control_delta[i] >= p.delta;
    assert_true(e->beyond == beyond && e->control_low <= e->control_mean && e->control_mean <= e->control_high);
    printf("  change %+.3f, controls %+.3f [%+.3f, %+.3f], %d beyond\n", e->pair.delta, e->control_mean, e->control_low, e->control_high,
           beyond);
    intervention_free(&x);
    edit_list_free(&l);
    edit_list_free(&none);
    samples_free(&s);
    model_close(&m);
}

/* Every point of a sweep is the list it stands for; the best on dev is the one that is told on test. */
static void steering_is_its_lists(void **state) {
    enum { TRAIN = 30, DEV = 24, TEST = 20 };
    struct model m;
    struct samples s;
    struct caa c;
    struct sae_host sae;
    struct edit_list l, none;
    static const int layers[] = {2, 5};
    static const double strengths[] = {60, -60, 0.001};
    struct steering x = {.contrast = CONTRAST_ANSWERS,
                         .task = EVALUATE_VSR,
                         .batch = 8,
                         .controls = 0,
                         .seed = 1,
                         .feature = 9,
                         .feature_layer = 5,
                         .layers = layers,
                         .n_layers = 2,
                         .strengths = strengths,
                         .n_strengths = 3};
    (void)state;
    open_model(&m, WORLD "/vlm");
    MUST(samples_open(&s, WORLD "/data/vsr_train.jsonl", err));
    MUST(sae_load(&sae, SAE, err));
    MUST(caa_make(&c, &m, &s, 0, TRAIN, CONTRAST_ANSWERS, EVALUATE_VSR, 8, err));
    open_list(&none, &m, "[]");
    const struct steer_samples train = {&s, 0, TRAIN}, dev = {&s, TRAIN, DEV}, test = {&s, TRAIN + DEV, TEST};
    const float *row = sae.D + 9 * WORLD_WIDTH;
    for (int method = 0; method < STEER_METHODS; method++) {
        int best = 0;
        x.method = (enum steer_method)method;
        x.sae = method == STEER_CAA ? NULL : &sae;
        x.factor = method == STEER_MMDIFF_SUM ? 40 : 3;
        MUST(steer(&x, &m, method == STEER_DECODER ? &(struct steer_samples){0} : &train, &dev, &test, err));
        assert_int_equal(x.n_points, method == STEER_CAA || method == STEER_DECODER ? 6 : 3);
        assert_true(x.dev_baseline == accuracy(&m, &none, &s, TRAIN, DEV, NULL) && x.dev_n == DEV);
        for (int i = 0; i < x.n_points; i++) {
            const struct steer_point *p = &x.points[i];
            memset(&l, 0, sizeof l);
            l.path = memory_string("by hand");
            for (int k = 0; k < 2; k++) {
                float v[WORLD_WIDTH];
                if (method != STEER_MMDIFF_SUM && layers[k] != p->layer) continue;
                const float *own = c.vectors + layers[k] * WORLD_WIDTH;
                double dot = 0;
                for (int d = 0; d < WORLD_WIDTH; d++) dot += (double)own[d] * (double)row[d] / vector_norm(own, WORLD_WIDTH);
                for (int d = 0; d < WORLD_WIDTH; d++) {
                    const double unit = (double)own[d] / vector_norm(own, WORLD_WIDTH);
                    v[d] =
                        (float)(method == STEER_CAA            ? unit
                                : method == STEER_DECODER      ? (double)row[d]
                                : method == STEER_MMDIFF_SCALE ? unit + 2 * dot * (double)row[d]
                                                               : p->strength * (double)own[d] + (layers[k] == 5 ? 40 * (double)row[d] : 0));
                }
                edit_list_add_vector(&l, &m, layers[k], v, method == STEER_MMDIFF_SUM ? 1 : p->strength);
            }
            assert_true(p->layer == (x.n_points == 3 ? 5 : layers[i / 3]) && p->strength == strengths[i % 3]);
            assert_true(fabs(p->accuracy - accuracy(&m, &l, &s, TRAIN, DEV, NULL)) < 1e-12);
            const struct steer_point *b = &x.points[best];
            if (p->accuracy > b->accuracy || (p->accuracy == b->accuracy && fabs(p->strength) < fabs(b->strength))) best = i;
            if (i == x.chosen) assert_true(fabs(x.test.effect.pair.intervened - accuracy(&m, &l, &s, TRAIN + DEV, TEST, NULL)) < 1e-12);
            edit_list_free(&l);
        }
        assert_int_equal(x.chosen, best);
        printf("  %-13s dev %.3f, chosen layer %d strength %g: %.3f, test %+.3f\n", steer_methods[method], x.dev_baseline,
               x.points[best].layer, x.points[best].strength, x.points[best].accuracy, x.test.effect.pair.delta);
        steering_free(&x);
    }
    caa_free(&c);
    edit_list_free(&none);
    sae_host_free(&sae);
    samples_free(&s);
    model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(steering_is_its_lists), cmocka_unit_test(features_are_matched_by_firing),
                                       cmocka_unit_test(heads_and_directions_are_drawn), cmocka_unit_test(together_is_as_alone)};
    return cmocka_run_group_tests_name("intervene", tests, NULL, NULL);
}
