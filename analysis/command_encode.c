/* command_encode.c - `stagediff encode`: rows of activations -> sparse codes and their reconstruction (docs/cli.md). */
#include "analysis/rows.h"
#include "host/file.h"
#include "host/options.h"
#include "host/progress.h"
#include "host/tensors.h"
#include "sae/sae.h"
#include <stdlib.h>
#include <string.h>

#include "kernels/sae_ops.h"

enum { CHUNK = 1024, JUMPRELU_SLOTS = 128 };

struct codes { /* all rows' active features, ragged */
    int *counts, *indices;
    float *values;
    size_t used, room;
    int widest;
};

struct buffers { /* for CHUNK rows */
    int *indices, *counts, *host_indices, *host_counts;
    float *values, *x_hat, *host_values;
    int K;
};

static void buffers_free(struct device *dev, struct buffers *b) {
    device_free(dev, b->indices), device_free(dev, b->values), device_free(dev, b->counts), device_free(dev, b->x_hat);
    free(b->host_indices), free(b->host_values), free(b->host_counts);
    memset(b, 0, sizeof *b);
}

static int buffers_take(struct device *dev, struct buffers *b, int K, int d, struct error *err) {
    size_t slots = (size_t)CHUNK * (size_t)K;
    buffers_free(dev, b);
    b->K = K;
    b->indices = device_alloc(dev, slots * sizeof(int));
    b->values = device_alloc(dev, slots * sizeof(float));
    b->counts = device_alloc(dev, CHUNK * sizeof(int));
    b->x_hat = device_alloc(dev, (size_t)CHUNK * (size_t)d * sizeof(float));
    b->host_indices = memory_take(slots, sizeof(int));
    b->host_values = memory_take(slots, sizeof(float));
    b->host_counts = memory_take(CHUNK, sizeof(int));
    if (b->indices && b->values && b->counts && b->x_hat) return 0;
    return fail(err, "%s: codes of %d rows with %d active features need %zu bytes, %zu are free", device_name(dev), CHUNK, K, slots * 8,
                device_memory_free(dev));
}

/* Encodes the chunk in the feed. A JumpReLU row may have more active features than there are slots: then once more with enough. */
static int encode_chunk(struct sae *sae, struct buffers *b, const void *x, int n, struct error *err) {
    if (!sae_fixed_k(sae->activation)) {
        int most = 1;
        sae_encode(sae, b->indices, b->values, b->counts, x, n, b->K);
        device_download(sae->dev, b->host_counts, b->counts, (size_t)n * sizeof(int));
        for (int i = 0; i < n; i++) most = b->host_counts[i] > most ? b->host_counts[i] : most;
        if (most > b->K) {
            if (buffers_take(sae->dev, b, most, sae->d, err)) return -1;
            sae_encode(sae, b->indices, b->values, b->counts, x, n, b->K);
        }
    } else {
        sae_encode(sae, b->indices, b->values, NULL, x, n, b->K);
    }
    size_t slots = (size_t)n * (size_t)b->K;
    device_download(sae->dev, b->host_indices, b->indices, slots * sizeof(int));
    device_download(sae->dev, b->host_values, b->values, slots * sizeof(float));
    return 0;
}

static void keep_active(struct codes *c, const struct buffers *b, int first, int n) {
    size_t most = c->used + (size_t)n * (size_t)b->K;
    if (most > c->room) {
        c->room = most + most / 2;
        c->indices = memory_grow(c->indices, c->room, sizeof *c->indices);
        c->values = memory_grow(c->values, c->room, sizeof *c->values);
    }
    for (int r = 0; r < n; r++) {
        int count = 0;
        for (size_t i = (size_t)r * (size_t)b->K; i < (size_t)(r + 1) * (size_t)b->K; i++)
            if (b->host_indices[i] >= 0 && b->host_values[i] != 0) {
                c->indices[c->used] = b->host_indices[i];
                c->values[c->used++] = b->host_values[i];
                count++;
            }
        c->counts[first + r] = count;
        c->widest = count > c->widest ? count : c->widest;
    }
}

static int write_codes(const char *path, const struct codes *c, const float *x_hat, int n, int d, struct error *err) {
    struct safetensors_writer *w = NULL;
    size_t K = c->widest > 1 ? (size_t)c->widest : 1, at = 0;
    if (safetensors_writer_open(&w, path, err)) return -1;
    int *indices = memory_take((size_t)n * K + 1, sizeof *indices);
    float *values = memory_take((size_t)n * K + 1, sizeof *values);
    for (int r = 0; r < n; r++)
        for (size_t k = 0; k < K; k++) {
            bool active = k < (size_t)c->counts[r];
            indices[(size_t)r * K + k] = active ? c->indices[at] : -1;
            values[(size_t)r * K + k] = active ? c->values[at] : 0;
            at += active;
        }
    const int64_t code_shape[2] = {n, (int64_t)K}, row_shape[2] = {n, d};
    safetensors_writer_give(w, "indices", DTYPE_I32, 2, code_shape, indices);
    safetensors_writer_give(w, "values", DTYPE_F32, 2, code_shape, values);
    safetensors_writer_add(w, "reconstruction", DTYPE_F32, 2, row_shape, x_hat);
    return safetensors_writer_commit(w, err);
}

/* x_hat += skip x */
static void add_skip(struct sae *sae, float *x_hat, float *skip, const void *x, int n) {
    size_t count = (size_t)n * (size_t)sae->d;
    float *host = memory_take(count, sizeof *host);
    sae_skip(sae, skip, x, n);
    device_download(sae->dev, host, skip, count * sizeof *host);
    for (size_t i = 0; i < count; i++) x_hat[i] += host[i];
    free(host);
}

struct normalised { /* a chunk's rows, to be undone */
    enum sae_norm norm;
    float shift[CHUNK], scale[CHUNK];
};

static void normalise(float *rows, int n, int d, void *context) {
    struct normalised *c = context;
    sae_normalise(c->norm, rows, c->shift, c->scale, n, d);
}

static int encode_rows(struct device *dev, const struct sae_host *host, const struct rows *rows, const char *out, struct error *err) {
    struct sae sae = {0};
    struct row_feed feed = {0};
    struct buffers b = {0};
    struct codes codes = {0};
    struct progress progress;
    struct normalised normalised = {.norm = host->norm};
    int status = -1, d = rows->d;
    float *skip = NULL, *x_hat = memory_take((size_t)rows->n * (size_t)d + 1, sizeof *x_hat);
    codes.counts = memory_take((size_t)rows->n + 1, sizeof *codes.counts);
    int slots = sae_fixed_k(host->activation) ? host->K : host->M < JUMPRELU_SLOTS ? host->M : JUMPRELU_SLOTS;
    if (sae_upload(&sae, dev, host, CHUNK, false, err) || row_feed_open(&feed, dev, rows, CHUNK, err) ||
        buffers_take(dev, &b, slots, d, err))
        goto done;
    if (sae.skip && !(skip = device_alloc(dev, (size_t)CHUNK * (size_t)d * sizeof *skip))) {
        fail(err, "%s: the skip connection of %d rows needs %zu bytes, %zu are free", device_name(dev), CHUNK,
             (size_t)CHUNK * (size_t)d * sizeof *skip, device_memory_free(dev));
        goto done;
    }
    if (host->norm != SAE_NORM_NONE) feed.prepare = normalise, feed.context = &normalised;
    progress_start(&progress, "encode", "rows", rows->n);
    for (int first = 0; first < rows->n; first += CHUNK) {
        int n = rows->n - first < CHUNK ? rows->n - first : CHUNK;
        float *rebuilt = x_hat + (size_t)first * (size_t)d;
        row_feed_put(&feed, NULL, first, n);
        if (encode_chunk(&sae, &b, feed.x, n, err)) goto done;
        OP(sae_decode)(dev, b.x_hat, b.indices, b.values, sae.D, sae.b_d, n, d, b.K);
        device_download(dev, rebuilt, b.x_hat, (size_t)n * (size_t)d * sizeof(float));
        if (skip) add_skip(&sae, rebuilt, skip, feed.x, n);
        if (feed.prepare) sae_denormalise(rebuilt, normalised.shift, normalised.scale, n, d);
        keep_active(&codes, &b, first, n);
        progress_update(&progress, first + n, NULL);
    }
    progress_end(&progress);
    status = write_codes(out, &codes, x_hat, rows->n, d, err);
done:
    if (sae.dev) sae_free(&sae);
    row_feed_close(&feed);
    buffers_free(dev, &b);
    device_free(dev, skip);
    free(codes.counts), free(codes.indices), free(codes.values), free(x_hat);
    return status;
}

static int run(const struct command *self, struct error *err) {
    const char *path = option(self, "--sae")->text;
    const struct option *k = option(self, "--k");
    char why[256] = "";
    struct sae_host host = {0};
    struct rows rows = {0};
    int status = -1;
    struct device *dev = device_open(0, self->threads, why, sizeof why);
    if (!dev) return fail(err, "no device: %s", why);
    if (sae_load(&host, path, err) || sae_set_k(&host, k->given ? (int)k->number : 0, path, err)) goto done;
    if (sae_fixed_k(host.activation) && host.K == 0) {
        fail(err, "%s: a %s dictionary whose files do not say k; give it with --k", path, sae_activation_name(host.activation));
        goto done;
    }
    if (host.K > host.M) {
        fail(err, "%s: k is %d, the dictionary has %d features; give a smaller --k", path, host.K, host.M);
        goto done;
    }
    if (rows_open(&rows, option(self, "--in")->text, option(self, "--tensor")->text, host.d, path, err)) goto done;
    status = encode_rows(dev, &host, &rows, option(self, "--out")->text, err);
done:
    rows_close(&rows);
    sae_host_free(&host);
    device_close(dev);
    return status;
}

static struct option options[] = {
    {.name = "--sae",
     .value = "DIR",
     .type = OPTION_TEXT,
     .required = true,
     .help = "the dictionary: a folder or file of any format in docs/dictionaries.md"},
    {.name = "--in", .value = "FILE", .type = OPTION_TEXT, .required = true, .help = "safetensors file with the rows"},
    {.name = "--tensor",
     .value = "NAME",
     .type = OPTION_TEXT,
     .required = true,
     .help = "name of the tensor in it: (N, d) or (.., d), any float type"},
    {.name = "--k", .type = OPTION_INT, .low = 1, .high = 1 << 20, .help = "active features of a TopK dictionary whose files do not say"},
    {.name = "--out", .value = "FILE", .type = OPTION_TEXT, .required = true, .help = "safetensors file to write"},
    {.name = NULL},
};

struct command command_encode = {
    .name = "encode",
    .summary = "sparse codes of rows of activations under a dictionary",
    .description =
        "Writes indices (N, K) ascending and padded with -1, values (N, K) padded with 0, reconstruction (N, d); K is the largest number\n"
        "of active features of a row. Values are in the units of docs/cli.md (Llama Scope: raw activations, unit decoder rows).\n\n"
        "  stagediff harvest --model llava --data vqa.jsonl --points blocks.12.hook_resid_post --out rows.safetensors\n"
        "  stagediff encode --sae Llama3_1-8B-Base-L12R-8x --in rows.safetensors --tensor 0/blocks.12.hook_resid_post --out "
        "codes.safetensors\n",
    .options = options,
    .run = run,
};
