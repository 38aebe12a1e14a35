/* command_generate.c - `stagediff generate`: greedy answers, as text or JSON lines. docs/cli.md has the contract. */
#include "analysis/edit.h"
#include "host/file.h"
#include "host/progress.h"
#include "host/tokenizer.h"
#include "models/ahead.h"
#include "models/command.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One sample from --image, --prompt, --question. */
static int sample_of_options(struct samples *s, const struct command *self, struct error *err) {
    const char *image = option(self, "--image")->text, *prompt = option(self, "--prompt")->text,
               *question = option(self, "--question")->text;
    if (!prompt == !question) return fail(err, "generate: give one of --prompt, --question, --data");
    s->at = memory_take(1, sizeof *s->at);
    s->count = 1;
    s->path = memory_string("command line");
    s->at->id = memory_string("0");
    s->at->image = image ? memory_string(image) : NULL;
    s->at->prompt = prompt ? memory_string(prompt) : NULL;
    s->at->question = question ? memory_string(question) : NULL;
    s->at->label = -1;
    s->at->json = json_object();
    return 0;
}

static json_t *id_list(const int *ids, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static void print_answer(const struct model *m, const struct sample *s, const int *prompt, int n_prompt, const int *ids, int n,
                         bool stopped, bool json, bool many) {
    char *text = tokenizer_decode(m->tokenizer, ids, (size_t)n, true);
    if (!json) {
        if (many) printf("%s: ", s->id);
        puts(text);
        free(text);
        return;
    }
    json_t *id = json_loads(s->id, JSON_DECODE_ANY, NULL);
    json_t *line = json_pack("{s:o, s:o, s:o, s:s, s:s}", "id", id ? id : json_null(), "prompt_ids", id_list(prompt, n_prompt), "ids",
                             id_list(ids, n), "text", text, "stopped", stopped ? "eos" : "length");
    char *dump = json_dumps(line, JSON_COMPACT);
    puts(dump);
    free(dump);
    json_decref(line);
    free(text);
}

static int answer(struct model *m, struct ahead *ahead, size_t first, size_t size, int max_new, const struct probe *probes, int n_probes,
                  bool json, struct error *err) {
    struct batch b;
    int *ids, *lengths;
    bool *stopped;
    const struct samples *s = ahead->s;
    if (ahead_next(ahead, &b, first, size, s->count, err)) return -1;
    int status = model_generate(m, &b, max_new, probes, n_probes, &ids, &lengths, &stopped, err);
    if (!status) {
        for (int i = 0; i < b.n_samples; i++)
            print_answer(m, &s->at[first + (size_t)i], b.ids + b.cu_seqlens[i], b.cu_seqlens[i + 1] - b.cu_seqlens[i],
                         ids + (size_t)i * (size_t)max_new, lengths[i], stopped[i], json, s->count > 1);
        free(ids);
        free(lengths);
        free(stopped);
    }
    batch_free(&b);
    return status;
}

static int run(const struct command *self, struct error *err) {
    const char *data = option(self, "--data")->text;
    const size_t size = (size_t)option(self, "--batch")->number;
    struct model m = {0};
    struct samples s = {0};
    struct ahead ahead = {.m = &m, .s = &s};
    struct edit_session edit = {0};
    struct probe *probes = NULL;
    struct progress progress;
    int n_probes, status = -1;
    if (data && (option(self, "--image")->text || option(self, "--prompt")->text || option(self, "--question")->text)) {
        fail(err, "generate: --data brings its own pictures and questions; leave out --image, --prompt, --question");
        goto cleanup;
    }
    if ((data ? samples_open(&s, data, err) : sample_of_options(&s, self, err)) || command_open(&m, self, err)) goto cleanup;
    if (edit_session_open(&edit, &m, option(self, "--edit")->text, err)) goto cleanup;
    probes = edits_before(edit.edits, NULL, 0, &n_probes);
    progress_start(&progress, "generate", "samples", (long)s.count);
    for (size_t first = 0; first < s.count; first += size) {
        const size_t count = s.count - first < size ? s.count - first : size;
        if (answer(&m, &ahead, first, size, (int)option(self, "--max-new-tokens")->number, probes, n_probes, option(self, "--json")->given,
                   err))
            goto cleanup;
        progress_update(&progress, (long)(first + count), NULL);
    }
    progress_end(&progress);
    status = 0;
cleanup:
    ahead_end(&ahead);
    free(probes);
    samples_free(&s);
    edit_session_close(&edit);
    if (m.dev) command_close(&m);
    return status;
}

static struct option options[] = {
    MODEL_OPTIONS,
    {.name = "--image", .value = "FILE", .type = OPTION_TEXT, .help = "picture, JPEG or PNG"},
    {.name = "--prompt", .type = OPTION_TEXT, .help = "text used as it is; <image> marks where the picture goes"},
    {.name = "--question", .type = OPTION_TEXT, .help = "a question, put into the checkpoint's conversation template"},
    {.name = "--data", .value = "FILE.jsonl", .type = OPTION_TEXT, .help = "samples, one JSON object a line (docs/cli.md)"},
    {.name = "--max-new-tokens", .type = OPTION_INT, .low = 1, .high = 1 << 20, .fallback = "128", .help = "longest answer in tokens"},
    EDIT_OPTION,
    {.name = "--json", .type = OPTION_FLAG, .help = "one JSON object a sample: id, prompt_ids, ids, text, stopped"},
    {.name = NULL},
};
struct command command_generate = {
    .name = "generate",
    .summary = "greedy answers of a model to a prompt, a question, or a file of them",
    .description = "Greedy decoding; stops at the end-of-text ids of generation_config.json (else config.json). With --edit activations\n"
                   "are changed on the way, of the prompt and of every new token (kind answer).\n\n"
                   "Examples:\n  stagediff generate --model DIR --image cat.png --question 'What is left of the cat?'\n"
                   "  stagediff generate --model DIR --data questions.jsonl --max-new-tokens 16 --json",
    .options = options,
    .run = run,
};
