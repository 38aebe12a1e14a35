/* test_edit.c - the edit language (docs/cli.md) on tiny_llava against transformers with hooks (tools/golden/make_edits.py): every op,
 * row selection and order, whole and narrowed passes, packed and alone, generation; what is refused; build/sim with edits. */
#include "model_test.h"
#include "analysis/edit.h"
#include "analysis/evaluate.h"
#include "host/file.h"
#include "tests/world.h"
#include <math.h>
#include <unistd.h>

#define EDITS GOLDEN "/edits"
static const char *const cases[] = {"none",          "project_everywhere",
                                    "project_kinds", "project_after",
                                    "project_both",  "add",
                                    "add_unit",      "head_zero",
                                    "head_mean",     "subtract",
                                    "scale",         "clamp",
                                    "reconstruct",   "subtract_jumprelu",
                                    "keep_error",    "reconstruct_jumprelu",
                                    "in_order"};
enum { CASES = sizeof cases / sizeof *cases, NEW = 5 };
static const int samples[] = {0, 2};
static char sim_program[512];

static double worst;
static void close_to(const char *name, const char *what, const float *a, const float *b, size_t n, double floor) {
    const double e = relative_rms(a, b, n);
    worst = fmax(worst, e / floor);
    if (!(e <= 2 * floor)) FAIL("%s, %s: relative RMS error %g, floor %g", name, what, e, floor);
}

/* The golden samples with their kinds; sample 1, of no golden case, lies between them. */
static void edit_batch(struct batch *b, const struct model *m, const struct tensors *inputs, const struct tensors *st, int from, int n) {
    golden_batch(b, m, inputs, from, n);
    for (int i = 0; i < n; i++) {
        if (from + i == 1) continue;
        int32_t *kinds = golden_int(st, NULL, "%d/kinds", from + i);
        for (int t = b->cu_seqlens[i]; t < b->cu_seqlens[i + 1]; t++) b->kinds[t] = (uint8_t)kinds[t - b->cu_seqlens[i]];
        free(kinds);
    }
}

/* Rows of sample 0 and last logits of a whole pass, then the last logits alone, where the last layer runs for last rows only. */
static void compare_pass(const char *name, struct model *m, const struct batch *b, struct edits *e, const struct tensors *st, int sample,
                         int place, double floor) {
    struct kept post = {.point = PROBE_RESID_POST}, z = {.point = PROBE_ATTN_Z};
    const struct probe own[] = {{PROBE_RESID_POST, -1, keep_probe, &post}, {PROBE_ATTN_Z, -1, keep_probe, &z}};
    const size_t V = (size_t)m->vocab, rows = (size_t)(b->cu_seqlens[place + 1] - b->cu_seqlens[place]), C = (size_t)m->d_model;
    const size_t from = (size_t)b->cu_seqlens[place] * C;
    float *last = malloc((size_t)b->n_samples * V * sizeof *last), *alone = malloc((size_t)b->n_samples * V * sizeof *alone);
    int n, n_own;
    struct probe *all = edits_before(e, own, 2, &n), *edits = edits_before(e, NULL, 0, &n_own);
    MUST(model_forward(m, b, all, n, last, err));
    MUST(model_forward(m, b, edits, n_own, alone, err));
    float *logits = golden_real(st, NULL, "%s/%d/logits", name, sample);
    close_to(name, "logits", last + (size_t)place * V, logits, V, floor);
    close_to(name, "logits alone", alone + (size_t)place * V, logits, V, floor);
    for (int l = 0; l < m->n_layers && sample == 0; l++) {
        char tensor[64];
        float *states = golden_real(st, NULL, "%s/0/states", name);
        close_to(name, "states", post.data[l + 1] + from, states + (size_t)l * rows * C, rows * C, floor);
        free(states);
        snprintf(tensor, sizeof tensor, "%s/0/z", name);
        if (!tensors_find(st, tensor)) continue;
        float *heads = golden_real(st, NULL, "%s", tensor); /* H*D is C here */
        close_to(name, "z", z.data[l + 1] + from, heads + (size_t)l * rows * C, rows * C, floor);
        free(heads);
    }
    free(all), free(edits), free(logits), free(last), free(alone);
    kept_free(&post);
    kept_free(&z);
}

static void edits_equal_hooks(void **state) {
    struct model m;
    struct tensors *inputs = open_golden("tiny_llava"), *st = open_golden("edits/golden");
    float *floor = golden_real(st, NULL, "floor");
    (void)state;
    open_model(&m, GOLDEN "/tiny_llava");
    m.n_eos = 0;
    for (int c = 0; c < CASES; c++) {
        char path[256];
        struct edit_session s;
        struct batch packed;
        int *ids, *lengths, n;
        bool *stopped;
        snprintf(path, sizeof path, EDITS "/%s.json", cases[c]);
        MUST(edit_session_open(&s, &m, path, err));
        edit_batch(&packed, &m, inputs, st, 0, 3);
        struct probe *probes = edits_before(s.edits, NULL, 0, &n);
        MUST(model_generate(&m, &packed, NEW, probes, n, &ids, &lengths, &stopped, err));
        for (int i = 0; i < 2; i++) {
            struct batch alone;
            compare_pass(cases[c], &m, &packed, s.edits, st, samples[i], samples[i], floor[0]);
            edit_batch(&alone, &m, inputs, st, samples[i], 1);
            compare_pass(cases[c], &m, &alone, s.edits, st, samples[i], 0, floor[0]);
            batch_free(&alone);
            int32_t *want = golden_int(st, NULL, "%s/%d/generated", cases[c], samples[i]);
            for (int t = 0; t < NEW; t++) {
                if (ids[samples[i] * NEW + t] != want[t])
                    FAIL("%s: sample %d, new token %d is %d, expected %d", cases[c], samples[i], t, ids[samples[i] * NEW + t], want[t]);
            }
            free(want);
        }
        free(ids), free(lengths), free(stopped), free(probes);
        batch_free(&packed);
        edit_session_close(&s);
    }
    printf("  %d cases: relative RMS error at most %.2f of the floor %.2g\n", CASES, worst, (double)floor[0]);
    free(floor);
    model_close(&m);
    tensors_close(inputs);
    tensors_close(st);
}

/* ---- what is refused, and what the sentence says ---- */
#define V  "\"vector\":{\"file\":\"v.safetensors\",\"tensor\":\"rows\",\"row\":0}"
#define P  "\"points\":[\"attn_out\"]"
#define PO "{\"op\":\"project_out\","
#define FE "{\"op\":\"feature\",\"sae\":\"sae\",\"layer\":0,\"features\":[1],\"mode\":"
static const struct {
    const char *json, *says; /* says NULL: accepted */
} specs[] = {
    {"[]", NULL},
    {"[" PO V "," P "}]", NULL},
    {"[" PO V "," P ",\"layers\":[1],\"scale\":-2,\"kinds\":[\"bos\"],\"after_image\":false}]", NULL},
    {"{\"op\":\"add\"}", "expected a list of edits"},
    {"[" PO V "," P, "line 1"},
    {"[" PO V "," P "},3]", "edit 2: expected an object"},
    {"[{" V "}]", "\"op\" is missing"},
    {"[{\"op\":\"project\"}]", "expected one of project_out, add, head, feature, reconstruct, found \"project\""},
    {"[" PO V "," P ",\"layer\":1}]", "unknown field \"layer\"; did you mean \"layers\"?"},
    {"[" PO V "," P ",\"unit\":true}]", "unknown field \"unit\""},
    {"[" PO V "}]", "edit 1: project_out: \"points\" is missing"},
    {"[" PO V ",\"points\":[]}]", "\"points\" names none"},
    {"[" PO V ",\"points\":[\"resid_pre\"]}]", "attn_out, mlp_out, resid_post, found \"resid_pre\""},
    {"[" PO V "," P ",\"layers\":[2]}]", "the model's layers are 0 to 1, found 2"},
    {"[" PO V "," P ",\"layers\":[-1]}]", "found -1"},
    {"[" PO V "," P ",\"layers\":[0.5]}]", "whole number"},
    {"[" PO V "," P ",\"layers\":[1,1]}]", "twice"},
    {"[" PO V "," P ",\"layers\":\"some\"}]", "\"all\" or a list"},
    {"[" PO V "," P ",\"scale\":\"1\"}]", "\"scale\": expected a number"},
    {"[" PO V "," P ",\"kinds\":[]}]", "\"kinds\": expected a list with at least one"},
    {"[" PO V "," P ",\"kinds\":[\"text\"]}]", "found \"text\""},
    {"[" PO V "," P ",\"after_image\":1}]", "\"after_image\": expected true or false"},
    {"[" PO P "}]", "\"vector\" is missing"},
    {"[" PO P ",\"vector\":{\"file\":\"v.safetensors\",\"tensor\":\"rows\"}}]", "\"row\" is missing"},
    {"[" PO P ",\"vector\":{\"file\":\"v.safetensors\",\"tensor\":\"rows\",\"row\":3}}]", "0 to 2"},
    {"[" PO P ",\"vector\":{\"file\":\"v.safetensors\",\"tensor\":\"row\"}}]", "row"},
    {"[" PO P ",\"vector\":{\"file\":\"w.safetensors\",\"tensor\":\"one\"}}]", "w.safetensors"},
    {"[" PO P ",\"vector\":{\"file\":\"v.safetensors\",\"tensor\":\"short\"}}]", "expected shape (48)"},
    {"[" PO P ",\"vector\":{\"file\":\"v.safetensors\",\"tensor\":\"zero\"}}]", "all its values are 0"},
    {"[" PO P ",\"vector\":{\"file\":\"v.safetensors\",\"tensor\":\"nan\"}}]", "not finite"},
    {"[" PO P ",\"vector\":{\"sae\":\"sae\",\"feature\":40}}]", "0 to 39, found 40"},
    {"[" PO P ",\"vector\":{\"sae\":\"sae\"}}]", "\"feature\" is missing"},
    {"[" PO P ",\"vector\":{\"sae\":\"sae\",\"feature\":1,\"row\":2}}]", "unknown field \"row\""},
    {"[" PO P ",\"vector\":{\"sae\":\"no\",\"feature\":1}}]", "no"},
    {"[{\"op\":\"add\"," V "," P ",\"scale\":1e39}]", "not finite"},
    {"[{\"op\":\"add\"," V "," P ",\"unit\":true}]", NULL},
    {"[{\"op\":\"head\",\"heads\":[2],\"mode\":\"zero\"}]", "heads are 0 to 1, found 2"},
    {"[{\"op\":\"head\",\"mode\":\"zero\"}]", "\"heads\" is missing"},
    {"[{\"op\":\"head\",\"heads\":[],\"mode\":\"zero\"}]", "at least one"},
    {"[{\"op\":\"head\",\"heads\":[0]}]", "\"mode\" is missing"},
    {"[{\"op\":\"head\",\"heads\":[0],\"mode\":\"mean\"}]", "\"mean\" is missing"},
    {"[{\"op\":\"head\",\"heads\":[0],\"mode\":\"mean\",\"mean\":\"v.safetensors\"}]", "blocks.1.attn.hook_z"},
    {"[{\"op\":\"head\",\"heads\":[0],\"layers\":[0],\"mode\":\"mean\",\"mean\":\"v.safetensors\"}]", NULL},
    {"[{\"op\":\"head\",\"heads\":[0],\"mode\":\"zero\",\"points\":[]}]", "unknown field \"points\""},
    {"[" FE "\"subtract\"}]", NULL},
    {"[" FE "\"clamp\"}]", "\"value\" is missing"},
    {"[" FE "\"scale\",\"value\":0}]", NULL},
    {"[" FE "\"remove\"}]", "subtract, scale, clamp, found \"remove\""},
    {"[{\"op\":\"feature\",\"sae\":\"sae\",\"layer\":2,\"features\":[1],\"mode\":\"subtract\"}]", "0 to 1, found 2"},
    {"[{\"op\":\"feature\",\"sae\":\"sae\",\"features\":[1],\"mode\":\"subtract\"}]", "\"layer\" is missing"},
    {"[{\"op\":\"feature\",\"sae\":\"sae\",\"layer\":0,\"features\":[40],\"mode\":\"subtract\"}]", "0 to 39, found 40"},
    {"[{\"op\":\"feature\",\"layer\":0,\"features\":[1],\"mode\":\"subtract\"}]", "\"sae\" is missing"},
    {"[{\"op\":\"reconstruct\",\"sae\":\"sae\",\"layer\":0,\"keep_error\":0}]", "\"keep_error\": expected true or false"},
    {"[{\"op\":\"reconstruct\",\"sae\":\"narrow\",\"layer\":0}]", "width 16, the model's residual stream of 48"},
    {"[{\"op\":\"reconstruct\",\"sae\":\"sae\",\"layer\":0,\"keep_error\":true,\"keep_error\":true}]", "duplicate"},
};

/* v.safetensors with good and bad vectors, links to dictionaries. */
static void make_folder(const char *dir) {
    static float zero[48], nan[48], rows[3 * 48], means[48];
    char path[512];
    struct safetensors_writer *w = NULL;
    for (int i = 0; i < 3 * 48; i++) rows[i] = (float)(i % 7) - 3;
    nan[5] = NAN;
    snprintf(path, sizeof path, "%s/v.safetensors", dir);
    MUST(safetensors_writer_open(&w, path, err));
    safetensors_writer_add(w, "rows", DTYPE_F32, 2, (const int64_t[]){3, 48}, rows);
    safetensors_writer_add(w, "short", DTYPE_F32, 1, (const int64_t[]){47}, rows);
    safetensors_writer_add(w, "zero", DTYPE_F32, 1, (const int64_t[]){48}, zero);
    safetensors_writer_add(w, "nan", DTYPE_F32, 1, (const int64_t[]){48}, nan);
    safetensors_writer_add(w, "blocks.0.attn.hook_z", DTYPE_F32, 1, (const int64_t[]){48}, means);
    MUST(safetensors_writer_commit(w, err));
    snprintf(path, sizeof path, "ln -s \"$PWD/" EDITS "/sae_topk\" %s/sae && ln -s \"$PWD/tests/sae/golden/saelens_topk\" %s/narrow", dir,
             dir);
    if (system(path)) FAIL("%s", path);
}

static void bad_lists_are_refused(void **state) {
    char dir[] = "/tmp/stagediff_test_XXXXXX", path[256], clean[256];
    struct model m;
    (void)state;
    assert_non_null(mkdtemp(dir));
    make_folder(dir);
    open_model(&m, GOLDEN "/tiny_llava");
    snprintf(path, sizeof path, "%s/spec.json", dir);
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        struct error why = {""};
        struct edit_list l;
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fputs(specs[i].json, f);
        fclose(f);
        const int status = edit_list_open(&l, &m, path, &why);
        if (!specs[i].says && status) FAIL("%s: refused: %s", specs[i].json, why.text);
        if (specs[i].says && (!status || !strstr(why.text, specs[i].says) || !strstr(why.text, "spec.json")))
            FAIL("%s: expected to read \"%s\", found \"%s\"", specs[i].json, specs[i].says, status ? why.text : "no error");
        if (!status) edit_list_free(&l);
    }
    model_close(&m);
    snprintf(clean, sizeof clean, "rm -r %s", dir);
    assert_int_equal(system(clean), 0);
}

/* ---- several lists over the same samples: what they share is run once ---- */
static void write_text(const char *dir, const char *name, const char *text) {
    char *path = path_join(dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    free(path);
}

static void compare_variants(struct model *m, const char *data, enum evaluation_task task, bool after_image, const char *const *lists,
                             int n, size_t count) {
    struct samples s;
    struct edit_session sessions[4];
    struct evaluation shared[4], alone;
    struct variant variants[4];
    struct probe *probes[4];
    double worst_p = 0;
    int moved = 0;
    MUST(samples_open(&s, data, err));
    for (int i = 0; i < n; i++) {
        MUST(edit_session_open(&sessions[i], m, lists[i], err));
        shared[i] = (struct evaluation){.task = task, .max_new_tokens = 6};
        probes[i] = edits_before(sessions[i].edits, NULL, 0, &variants[i].n_probes);
        variants[i].probes = probes[i];
        variants[i].out = &shared[i];
    }
    MUST(evaluate_variants(m, &s, 0, count, variants, n, after_image, 4, err));
    for (int i = 0; i < n; i++) {
        alone = (struct evaluation){.task = task, .max_new_tokens = 6};
        MUST(evaluate_samples(m, &s, 0, count, probes[i], variants[i].n_probes, 3, &alone, err));
        for (size_t k = 0; k < count; k++) {
            if (strcmp(alone.at[k].text, shared[i].at[k].text))
                FAIL("%s, sample %zu: '%s', alone '%s'", data, k, shared[i].at[k].text, alone.at[k].text);
            if (task == EVALUATE_VSR) worst_p = fmax(worst_p, fabs(alone.at[k].p_yes - shared[i].at[k].p_yes));
            moved += strcmp(alone.at[k].text, shared[0].at[k].text) != 0;
        }
        assert_true(alone.scored == shared[i].scored && alone.correct == shared[i].correct);
        evaluation_free(&alone);
    }
    printf("  %zu samples, %d lists%s: answers equal, p within %.2g; %d answers moved by edits\n", count, n,
           after_image ? ", begun once" : "", worst_p, moved);
    assert_true(worst_p < 1e-4 && moved > 0);
    for (int i = 0; i < n; i++) {
        evaluation_free(&shared[i]);
        free(probes[i]);
        edit_session_close(&sessions[i]);
    }
    samples_free(&s);
}

static void shared_work_changes_nothing(void **state) {
    char dir[] = "/tmp/stagediff_test_XXXXXX", after[128], heads[128], all[128], data[128], text[2048], clean[256];
    struct model m;
    (void)state;
    assert_non_null(mkdtemp(dir));
    make_folder(dir);
    write_text(
        dir, "after.json",
        "[{\"op\":\"add\",\"vector\":{\"file\":\"w.safetensors\",\"tensor\":\"v\"},\"points\":[\"resid_post\"],\"after_image\":true}]");
    write_text(dir, "heads.json",
               "[{\"op\":\"head\",\"layers\":[1,2,3,4,5,6,7],\"heads\":[1,2,3,4,5,6,7,8],\"mode\":\"zero\",\"kinds\":[\"question\","
               "\"answer\"],\"after_"
               "image\":true}]");
    write_text(dir, "all.json", "[{\"op\":\"head\",\"layers\":[1,2,3,4,5],\"heads\":[0,1,2,3,4,5,6,7,8],\"mode\":\"zero\"}]");
    snprintf(after, sizeof after, "%s/after.json", dir);
    snprintf(heads, sizeof heads, "%s/heads.json", dir);
    snprintf(all, sizeof all, "%s/all.json", dir);
    float v[WORLD_WIDTH];
    struct safetensors_writer *w = NULL;
    char *path = path_join(dir, "w.safetensors");
    for (int i = 0; i < WORLD_WIDTH; i++) v[i] = (float)(i % 5 - 2);
    MUST(safetensors_writer_open(&w, path, err));
    safetensors_writer_add(w, "v", DTYPE_F32, 1, (const int64_t[]){WORLD_WIDTH}, v);
    MUST(safetensors_writer_commit(w, err));
    free(path);
    open_model(&m, WORLD "/vlm");
    compare_variants(&m, WORLD "/data/vsr_test.jsonl", EVALUATE_VSR, true, (const char *[]){NULL, after, heads}, 3, 21);
    compare_variants(&m, WORLD "/data/vsr_test.jsonl", EVALUATE_VSR, false, (const char *[]){NULL, after, all}, 3, 21);
    compare_variants(&m, WORLD "/data/vqa_test.jsonl", EVALUATE_VQA, true, (const char *[]){NULL, after, heads}, 3, 13);
    compare_variants(&m, WORLD "/data/vqa_test.jsonl", EVALUATE_VQA, false, (const char *[]){after, NULL, all}, 3, 13);
    /* a line without a picture; a prompt that ends with its picture, so that nothing of its batch can be left out */
    snprintf(
        text, sizeof text,
        "{\"prompt\":\"how many\",\"answer\":\"a\"}\n{\"prompt\":\"one <image> two\",\"image\":\"images/test_0000.png\",\"answer\":\"a\"}\n"
        "{\"prompt\":\"three\",\"answer\":\"a\"}\n{\"prompt\":\"what colour\",\"image\":\"images/test_0001.png\",\"answer\":\"a\"}\n"
        "{\"prompt\":\"two\",\"answer\":\"a\"}\n{\"prompt\":\"two <image>\",\"image\":\"images/test_0000.png\",\"answer\":\"a\"}\n");
    write_text(dir, "data.jsonl", text);
    snprintf(clean, sizeof clean, "ln -s \"$PWD/" WORLD "/data/images\" %s/images", dir);
    assert_int_equal(system(clean), 0);
    snprintf(data, sizeof data, "%s/data.jsonl", dir);
    compare_variants(&m, data, EVALUATE_VQA, true, (const char *[]){NULL, after, heads}, 3, 6);
    model_close(&m);
    snprintf(clean, sizeof clean, "rm -r %s", dir);
    assert_int_equal(system(clean), 0);
}

/* ---- the commands, on both executors: edited runs differ no more than unedited ones do ---- */
static float *harvest(const char *program, const char *dir, const char *edit, size_t *n) {
    char command[2048], out[256];
    struct tensors *st = NULL;
    snprintf(out, sizeof out, "%s/out.safetensors", dir);
    snprintf(command, sizeof command,
             "%s harvest --quiet --model " GOLDEN "/tiny_llava --data %s/data.jsonl --points 'blocks.1.hook_resid_post' --out %s%s%s%s",
             program, dir, out, edit ? " --edit " EDITS "/" : "", edit ? edit : "", edit ? ".json" : "");
    if (system(command)) FAIL("failed: %s", command);
    MUST(tensors_open(&st, out, err));
    float *x = golden_real(st, n, "0/blocks.1.hook_resid_post");
    tensors_close(st);
    return x;
}

static void sim_agrees_with_cpu(void **state) {
    static const char *const some[] = {"project_everywhere", "add_unit", "head_mean", "clamp", "reconstruct_jumprelu"};
    char dir[] = "/tmp/stagediff_test_XXXXXX", cpu_program[512], command[1024];
    size_t n;
    (void)state;
    snprintf(cpu_program, sizeof cpu_program, "%s", sim_program);
    memcpy(strstr(cpu_program, "/sim/"), "/cpu/", 5);
    assert_non_null(mkdtemp(dir));
    snprintf(command, sizeof command,
             "echo '{\"image\":\"'\"$PWD/" WORLD
             "/data/images/test_0000.png\"'\",\"prompt\":\"how many\",\"answer\":\"two\"}' > %s/data.jsonl",
             dir);
    if (system(command)) FAIL("%s", command);
    float *plain = harvest(cpu_program, dir, NULL, &n), *low = harvest(sim_program, dir, NULL, &n);
    const double floor = relative_rms(low, plain, n);
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        float *a = harvest(cpu_program, dir, some[i], &n), *b = harvest(sim_program, dir, some[i], &n);
        const double moved = relative_rms(a, plain, n), error = relative_rms(b, a, n);
        printf("  %-22s moves the rows by %.3f; sim %.3g from cpu, unedited %.3g\n", some[i], moved, error, floor);
        if (!(moved > 4 * floor && error < 2 * floor)) FAIL("%s: sim and cpu disagree", some[i]);
        free(a);
        free(b);
    }
    free(plain);
    free(low);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(int argc, char **argv) {
    const char *mark = argc ? strstr(argv[0], "/cpu/tests/") : NULL;
    const struct CMUnitTest tests[] = {cmocka_unit_test(edits_equal_hooks), cmocka_unit_test(bad_lists_are_refused),
                                       cmocka_unit_test(shared_work_changes_nothing), cmocka_unit_test(sim_agrees_with_cpu)};
    if (!mark)
        return fprintf(stderr, "run as BUILD/cpu/tests/models/test_edit: the programs are looked for at BUILD/{cpu,sim}/stagediff\n"), 1;
    snprintf(sim_program, sizeof sim_program, "%.*s/sim/stagediff", (int)(mark - argv[0]), argv[0]);
    return cmocka_run_group_tests_name("edit", tests, NULL, NULL);
}
