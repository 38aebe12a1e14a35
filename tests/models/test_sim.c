/* test_sim.c - `build/sim/stagediff harvest` (the CUDA kernels, bf16) on the small world cut to two layers, against the f32 run of this
 * program. The limit is measured: the same network computed plainly, one value after another, every stored activation rounded to
 * bf16 where act_t is stored, against f32. The kernels may have 1.25 times that error in RMS. */
#include "model_test.h"
#include "host/file.h"
#include "models/config.h"
#include "models/rope.h"
#include <math.h>
#include <unistd.h>

enum { LAYERS = 2 };
static char sim_program[512];

/* ---- the plain computation ---- */
static float bf(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &u, sizeof u);
    return x;
}

static float *weight(const struct tensors *st, const char *format, ...) {
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return golden_real(st, NULL, "%s", name);
}

/* (N, O) = bf(x (N, I) w^T + b); not rounded where keep */
static float *plain_linear(const float *x, float *w, float *b, int N, int I, int O, bool keep) {
    float *y = malloc((size_t)N * (size_t)O * sizeof *y);
    for (int n = 0; n < N; n++)
        for (int o = 0; o < O; o++) {
            float sum = b ? b[o] : 0;
            for (int i = 0; i < I; i++) sum += x[n * I + i] * w[o * I + i];
            y[n * O + o] = keep ? sum : bf(sum);
        }
    free(w);
    free(b);
    return y;
}

static float *plain_norm(const float *x, float *w, float *b, int N, int C, float eps) {
    float *y = malloc((size_t)N * (size_t)C * sizeof *y);
    for (int n = 0; n < N; n++) {
        const float *r = x + n * C;
        float mean = 0, var = 0;
        for (int i = 0; i < C && b; i++) mean += r[i] / (float)C;
        for (int i = 0; i < C; i++) var += (r[i] - mean) * (r[i] - mean) / (float)C;
        const float rstd = 1 / sqrtf(var + eps);
        for (int i = 0; i < C; i++) y[n * C + i] = b ? bf((r[i] - mean) * rstd * w[i] + b[i]) : bf(bf(r[i] * rstd) * w[i]);
    }
    free(w);
    free(b);
    return y;
}

static void plain_rotate(float *x, int N, int heads, int D, const float *cosine, const float *sine) {
    for (int n = 0; n < N; n++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < D / 2; i++) {
                float *a = x + (n * heads + h) * D + i, *b = a + D / 2, c = cosine[n * D / 2 + i], s = sine[n * D / 2 + i], a0 = *a,
                      b0 = *b;
                *a = bf(a0 * c - b0 * s);
                *b = bf(b0 * c + a0 * s);
            }
}

static float *plain_attention(float *q, float *k, float *v, int N, int H, int G, int D, bool causal) {
    float *z = calloc((size_t)(N * H * D), sizeof *z), *p = malloc((size_t)N * sizeof *p);
    for (int n = 0; n < N; n++)
        for (int h = 0; h < H; h++) {
            const int g = h / (H / G), last = causal ? n : N - 1;
            float top = -INFINITY, sum = 0;
            for (int j = 0; j <= last; j++) {
                p[j] = 0;
                for (int d = 0; d < D; d++) p[j] += q[(n * H + h) * D + d] * k[(j * G + g) * D + d];
                p[j] /= sqrtf((float)D);
                top = fmaxf(top, p[j]);
            }
            for (int j = 0; j <= last; j++) sum += p[j] = expf(p[j] - top);
            for (int d = 0; d < D; d++) {
                float y = 0;
                for (int j = 0; j <= last; j++) y += p[j] * v[(j * G + g) * D + d];
                z[(n * H + h) * D + d] = bf(y / sum);
            }
        }
    free(p);
    free(q);
    free(k);
    free(v);
    return z;
}

static void plain_add(float *x, float *y, int n) {
    for (int i = 0; i < n; i++) x[i] = bf(x[i] + y[i]);
    free(y);
}

/* One LLaMA layer on x (N, C) in place. */
static void plain_layer(float *x, const struct tensors *st, int l, const struct llama_config *c, int N, const float *cosine,
                        const float *sine) {
    const int C = c->C, H = c->H, G = c->G, D = c->D, F = c->F;
    char p[64];
    snprintf(p, sizeof p, "model.layers.%d", l);
    float *h = plain_norm(x, weight(st, "%s.input_layernorm.weight", p), NULL, N, C, c->eps);
    float *q = plain_linear(h, weight(st, "%s.self_attn.q_proj.weight", p), NULL, N, C, H * D, false),
          *k = plain_linear(h, weight(st, "%s.self_attn.k_proj.weight", p), NULL, N, C, G * D, false);
    float *v = plain_linear(h, weight(st, "%s.self_attn.v_proj.weight", p), NULL, N, C, G * D, false);
    plain_rotate(q, N, H, D, cosine, sine);
    plain_rotate(k, N, G, D, cosine, sine);
    float *z = plain_attention(q, k, v, N, H, G, D, true);
    plain_add(x, plain_linear(z, weight(st, "%s.self_attn.o_proj.weight", p), NULL, N, H * D, C, false), N * C);
    free(h);
    free(z);
    h = plain_norm(x, weight(st, "%s.post_attention_layernorm.weight", p), NULL, N, C, c->eps);
    float *gate = plain_linear(h, weight(st, "%s.mlp.gate_proj.weight", p), NULL, N, C, F, false),
          *up = plain_linear(h, weight(st, "%s.mlp.up_proj.weight", p), NULL, N, C, F, false);
    for (int i = 0; i < N * F; i++) gate[i] = bf(gate[i] / (1 + expf(-gate[i])) * up[i]);
    plain_add(x, plain_linear(gate, weight(st, "%s.mlp.down_proj.weight", p), NULL, N, F, C, false), N * C);
    free(h);
    free(gate);
    free(up);
}

/* One CLIP layer on x (T, C) in place; p: "...encoder.layers.3". */
static void plain_clip_layer(float *x, const struct tensors *st, const char *p, const struct clip_config *c, int T) {
    const int C = c->C, H = c->H, D = c->D, F = c->F;
    float *qkv[3], *h = plain_norm(x, weight(st, "%s.layer_norm1.weight", p), weight(st, "%s.layer_norm1.bias", p), T, C, c->eps);
    for (int i = 0; i < 3; i++)
        qkv[i] = plain_linear(h, weight(st, "%s.self_attn.%c_proj.weight", p, "qkv"[i]),
                              weight(st, "%s.self_attn.%c_proj.bias", p, "qkv"[i]), T, C, C, false);
    float *z = plain_attention(qkv[0], qkv[1], qkv[2], T, H, H, D, false);
    plain_add(x,
              plain_linear(z, weight(st, "%s.self_attn.out_proj.weight", p), weight(st, "%s.self_attn.out_proj.bias", p), T, C, C, false),
              T * C);
    free(h);
    free(z);
    h = plain_norm(x, weight(st, "%s.layer_norm2.weight", p), weight(st, "%s.layer_norm2.bias", p), T, C, c->eps);
    float *f = plain_linear(h, weight(st, "%s.mlp.fc1.weight", p), weight(st, "%s.mlp.fc1.bias", p), T, C, F, false);
    for (int i = 0; i < T * F; i++) f[i] = bf(f[i] / (1 + expf(-1.702f * f[i])));
    plain_add(x, plain_linear(f, weight(st, "%s.mlp.fc2.weight", p), weight(st, "%s.mlp.fc2.bias", p), T, F, C, false), T * C);
    free(h);
    free(f);
}

/* Image rows (n, C) of one picture through the selected tower layers and the projector. */
static float *plain_picture(const struct tensors *st, const struct checkpoint_config *c, const float *pixels) {
    const char *tower = "model.vision_tower.vision_tower.vision_model";
    const int P = c->clip.P, S = c->clip.S, side = S / P, n = side * side, C = c->clip.C, I = 3 * P * P;
    float *cut = malloc((size_t)(n * I) * sizeof *cut), *x = malloc((size_t)((n + 1) * C) * sizeof *x);
    for (int i = 0; i < n; i++)
        for (int e = 0; e < I; e++)
            cut[i * I + e] = bf(pixels[e / (P * P) * S * S + (i / side * P + e / P % P) * S + i % side * P + e % P]);
    float *patches = plain_linear(cut, weight(st, "%s.embeddings.patch_embedding.weight", tower), NULL, n, I, C, false);
    float *class_row = weight(st, "%s.embeddings.class_embedding", tower),
          *position = weight(st, "%s.embeddings.position_embedding.weight", tower);
    for (int i = 0; i < (n + 1) * C; i++) x[i] = bf((i < C ? class_row[i] : patches[i - C]) + position[i]);
    float *h = plain_norm(x, weight(st, "%s.pre_layrnorm.weight", tower), weight(st, "%s.pre_layrnorm.bias", tower), n + 1, C, c->clip.eps);
    for (int l = 0; l < c->llava.selected; l++) {
        char p[128];
        snprintf(p, sizeof p, "%s.encoder.layers.%d", tower, l);
        plain_clip_layer(h, st, p, &c->clip, n + 1);
    }
    float *y =
        plain_linear(h + C, weight(st, "model.mm_projector.0.weight"), weight(st, "model.mm_projector.0.bias"), n, C, c->llm.C, false);
    for (int i = 0; i < n * c->llm.C; i++) y[i] = bf(y[i] * 0.5f * (1 + erff(y[i] * (float)M_SQRT1_2)));
    float *rows =
        plain_linear(y, weight(st, "model.mm_projector.2.weight"), weight(st, "model.mm_projector.2.bias"), n, c->llm.C, c->llm.C, false);
    free(cut);
    free(x);
    free(patches);
    free(class_row);
    free(position);
    free(h);
    free(y);
    return rows;
}

/* ---- the comparison ---- */
static int failures;

static void judge(const char *what, int layer, const float *sim, const float *plain, const float *exact, size_t n) {
    const double error = relative_rms(sim, exact, n), floor = relative_rms(plain, exact, n);
    printf("  %-16s %2d   sim %.3g   floor %.3g   ratio %.2f\n", what, layer, error, floor, error / floor);
    failures += !(error <= 1.25 * floor);
}

static void shell(const char *format, ...) {
    char command[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    if (system(command)) FAIL("failed: %s", command);
}

/* A folder with the checkpoint cut to two layers: the config says so, the weights are the same file. */
static void cut(const char *name, const char *to) {
    char *path = path_join(to, "config.json");
    struct error err;
    shell("mkdir -p %s && for f in " WORLD "/%s/*; do ln -s $(realpath $f) %s/; done && rm %s", to, name, to, path);
    json_t *config = config_json(WORLD "/vlm", "config.json", &err);
    if (strcmp(name, "vlm")) {
        json_decref(config);
        config = config_json(WORLD "/base", "config.json", &err);
    }
    json_object_set_new(config, "num_hidden_layers", json_integer(LAYERS));
    assert_int_equal(json_dump_file(config, path, 0), 0);
    json_decref(config);
    free(path);
}

static void compare(const char *name, const char *data, const char *dir) {
    struct model m;
    struct samples s;
    struct batch b;
    struct checkpoint_config c;
    struct tensors *st = NULL, *sim = NULL;
    char model[256], out[256];
    struct kept embed = {.point = PROBE_EMBED}, post = {.point = PROBE_RESID_POST}, logits = {.point = PROBE_LOGITS};
    const struct probe probes[] = {
        {PROBE_EMBED, -1, keep_probe, &embed}, {PROBE_RESID_POST, -1, keep_probe, &post}, {PROBE_LOGITS, -1, keep_probe, &logits}};
    snprintf(model, sizeof model, "%s/%s", dir, name);
    snprintf(out, sizeof out, "%s/%s.safetensors", dir, name);
    cut(name, model);
    shell("%s harvest --quiet --model %s --data %s --points 'hook_embed,blocks.*.hook_resid_post,logits' --out %s", sim_program, model,
          data, out);
    MUST(tensors_open(&sim, out, err));
    MUST(tensors_open(&st, model, err));
    MUST(config_open(&c, model, err));
    if (c.layout == LAYOUT_LLAVA) {
        MUST(config_tower_open(&c.clip, WORLD "/clip", err));
        MUST(config_select(&c, model, err));
    }
    open_model(&m, model);
    MUST(samples_open(&s, data, err));
    MUST(model_batch(&m, &b, &s, 0, 1, true, err));
    MUST(model_forward(&m, &b, probes, 3, NULL, err));
    const int N = b.n_tokens, C = c.llm.C, half = c.llm.D / 2;
    const size_t count = (size_t)(N * C);
    float *cosine = malloc((size_t)(N * half) * sizeof *cosine), *sine = malloc((size_t)(N * half) * sizeof *sine),
          *x = malloc(count * sizeof *x), *table = weight(st, "model.embed_tokens.weight");
    float *rows = b.n_images ? plain_picture(st, &c, b.pixels) : NULL;
    rope_tables(cosine, sine, &c.llm.rope, N, c.llm.D);
    for (int n = 0; n < N; n++)
        memcpy(x + n * C, b.source[n] >= 0 ? table + b.source[n] * C : rows + (-1 - b.source[n]) * C, (size_t)C * sizeof *x);
    float *got = golden_real(sim, NULL, "0/hook_embed");
    if (rows)
        judge("hook_embed", -1, got, x, embed.data[0], count);
    else
        assert_memory_equal(got, embed.data[0], count * sizeof *got);
    for (int l = 0; l < LAYERS; l++) {
        free(got);
        got = golden_real(sim, NULL, "0/blocks.%d.hook_resid_post", l);
        plain_layer(x, st, l, &c.llm, N, cosine, sine);
        judge("hook_resid_post", l, got, x, post.data[l + 1], count);
    }
    free(got);
    got = golden_real(sim, NULL, "0/logits");
    float *h = plain_norm(x, weight(st, "model.norm.weight"), NULL, N, C, c.llm.eps);
    float *y = plain_linear(h, weight(st, "lm_head.weight"), NULL, N, C, c.llm.V, true);
    judge("logits", LAYERS, got, y, logits.data[0], (size_t)(N * c.llm.V));
    free(got);
    free(h);
    free(y);
    free(x);
    free(table);
    free(rows);
    free(cosine);
    free(sine);
    kept_free(&embed);
    kept_free(&post);
    kept_free(&logits);
    batch_free(&b);
    samples_free(&s);
    model_close(&m);
    tensors_close(st);
    tensors_close(sim);
}

static void sim_agrees_with_cpu(void **state) {
    char dir[] = "/tmp/stagediff_test_XXXXXX", data[128];
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(data, sizeof data, "%s/data.jsonl", dir);
    shell("ln -s $(realpath " WORLD ")/clip %s/clip && ln -s $(realpath " WORLD ")/data/images %s/images", dir, dir);
    shell("head -n 1 " WORLD "/data/text_test.jsonl > %s", data);
    compare("base", data, dir);
    shell("head -n 1 " WORLD "/data/vqa_test.jsonl > %s", data);
    compare("vlm", data, dir);
    shell("rm -r %s", dir);
    assert_int_equal(failures, 0);
}

int main(int argc, char **argv) {
    const char *mark = argc ? strstr(argv[0], "/cpu/tests/") : NULL;
    const struct CMUnitTest tests[] = {cmocka_unit_test(sim_agrees_with_cpu)};
    if (!mark) return fprintf(stderr, "run as BUILD/cpu/tests/models/test_sim: the sim program is looked for at BUILD/sim/stagediff\n"), 1;
    snprintf(sim_program, sizeof sim_program, "%.*s/sim/stagediff", (int)(mark - argv[0]), argv[0]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
