/* command_text.c - stagediff tokenize and detokenize: the tokenizer alone, no weights. */
#include "host/file.h"
#include "host/jsonl.h"
#include "host/options.h"
#include "host/tokenizer.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- tokenize ---- */
static struct option tokenize_options[] = {
    {.name = "--model", .value = "DIR", .type = OPTION_TEXT, .required = true, .help = "folder with tokenizer.json or tokenizer.model"},
    {.name = "--text", .type = OPTION_TEXT, .help = "the text itself"},
    {.name = "--in", .value = "FILE", .type = OPTION_TEXT, .help = "JSON lines {\"text\": ...}, instead of --text"},
    {.name = "--out", .value = "FILE", .type = OPTION_TEXT, .help = "where the result goes; stdout when absent"},
    {.name = "--no-special", .type = OPTION_FLAG, .help = "do not add the special tokens (BOS) that the tokenizer adds by itself"},
    {.name = "--json", .type = OPTION_FLAG, .help = "accepted; the output is JSON in any case"},
    {.name = NULL},
};

static json_t *id_list(const struct token_list *tokens) {
    json_t *ids = json_array();
    for (size_t i = 0; i < tokens->count; i++) json_array_append_new(ids, json_integer(tokens->ids[i]));
    return ids;
}

/* {"ids":[1,2]} and a newline, without a tree of JSON values: files have millions of ids. */
static void write_ids(FILE *out, const struct token_list *tokens) {
    fputs("{\"ids\":[", out);
    for (size_t i = 0; i < tokens->count; i++) {
        char digits[16], *d = digits + sizeof digits;
        unsigned id = (unsigned)tokens->ids[i];
        do *--d = (char)('0' + id % 10);
        while (id /= 10);
        if (i) *--d = ',';
        fwrite(d, 1, (size_t)(digits + sizeof digits - d), out);
    }
    fputs("]}\n", out);
}

static void write_json(FILE *out, json_t *value) {
    json_dumpf(value, out, JSON_COMPACT);
    fputc('\n', out);
    json_decref(value);
}

static int tokenize_text(const struct tokenizer *tok, const char *text, bool special, FILE *out, struct error *err) {
    struct token_list tokens = {0};
    int rc = tokenizer_encode(tok, text, strlen(text), special, &tokens, err);
    if (rc) {
        error_context(err, "--text");
    } else {
        json_t *pieces = json_array(), *object = json_object();
        for (size_t i = 0; i < tokens.count; i++) json_array_append_new(pieces, json_string(tokenizer_piece(tok, tokens.ids[i])));
        json_object_set_new(object, "ids", id_list(&tokens));
        json_object_set_new(object, "pieces", pieces);
        write_json(out, object);
    }
    token_list_free(&tokens);
    return rc;
}

static int tokenize_lines(const struct tokenizer *tok, const char *path, bool special, FILE *out, struct error *err) {
    struct jsonl lines;
    struct token_list tokens = {0};
    json_t *line = NULL;
    if (jsonl_open(&lines, path, err)) return -1;
    int rc;
    while ((rc = jsonl_next(&lines, &line, JSON_ALLOW_NUL, err)) == 1) {
        const json_t *text = json_object_get(line, "text");
        tokens.count = 0;
        if (!json_is_string(text))
            rc = fail(err, "%s:%ld: the key 'text' is missing or no text", path, lines.line);
        else if (tokenizer_encode(tok, json_string_value(text), json_string_length(text), special, &tokens, err))
            rc = error_context(err, "%s:%ld", path, lines.line);
        json_decref(line);
        if (rc < 0) break;
        write_ids(out, &tokens);
    }
    token_list_free(&tokens);
    jsonl_close(&lines);
    return rc;
}

static int run_tokenize(const struct command *self, struct error *err) {
    const char *text = option(self, "--text")->text, *in = option(self, "--in")->text, *out = option(self, "--out")->text;
    bool special = !option(self, "--no-special")->given;
    struct tokenizer *tok = NULL;
    struct file_writer file = {0};
    int rc = -1;
    if (!text == !in) return fail(err, "tokenize: give either --text STR or --in FILE.jsonl%s", text ? ", not both" : "");
    if (tokenizer_open(&tok, option(self, "--model")->text, err)) return -1;
    if (out && file_writer_open(&file, out, err)) goto cleanup;
    FILE *stream = out ? file.stream : stdout;
    rc = text ? tokenize_text(tok, text, special, stream, err) : tokenize_lines(tok, in, special, stream, err);
    if (!rc && out) rc = file_writer_commit(&file, err);
cleanup:
    file_writer_abort(&file);
    tokenizer_close(tok);
    return rc;
}

struct command command_tokenize = {
    .name = "tokenize",
    .summary = "text to token ids",
    .description =
        "Needs tokenizer.json or tokenizer.model alone, no weights. Special tokens spelled in the text are recognised.\n\n"
        "  stagediff tokenize --model llama --text 'Where is the red cube?'\n"
        "      {\"ids\":[...],\"pieces\":[...]}; pieces are vocabulary strings (a blank is spelled as one of the tokenizer's letters)\n"
        "  stagediff tokenize --model llama --in texts.jsonl --out ids.jsonl\n"
        "      a line {\"ids\":[...]} for every line {\"text\": ...}\n"
        "  stagediff tokenize --model llama --text '<|begin_of_text|>Hello' --no-special\n"
        "      a text that spells its BOS itself",
    .options = tokenize_options,
    .run = run_tokenize,
};

/* ---- detokenize ---- */
static struct option detokenize_options[] = {
    {.name = "--model", .value = "DIR", .type = OPTION_TEXT, .required = true, .help = "folder with tokenizer.json or tokenizer.model"},
    {.name = "--ids", .value = "1,2,...", .type = OPTION_TEXT, .required = true, .help = "token ids, separated by commas"},
    {.name = NULL},
};

static int parse_ids(const struct tokenizer *tok, const char *text, struct token_list *list, struct error *err) {
    const char *at = text + strspn(text, " ");
    while (*at) {
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (end == at || errno) return fail(err, "detokenize: --ids: a whole number is needed at '%.20s'", at);
        if (id < 0 || id >= tokenizer_vocab(tok) || !tokenizer_piece(tok, (int)id))
            return fail(err, "detokenize: --ids: %ld is no token; ids go from 0 to %d", id, tokenizer_vocab(tok) - 1);
        token_list_push(list, (int)id);
        at = end + strspn(end, " ");
        if (*at == ',' && at[1 + strspn(at + 1, " ")])
            at++;
        else if (*at)
            return fail(err, "detokenize: --ids: ids are separated by commas, found '%.20s'", at);
    }
    return 0;
}

static int run_detokenize(const struct command *self, struct error *err) {
    struct tokenizer *tok;
    struct token_list ids = {0};
    if (tokenizer_open(&tok, option(self, "--model")->text, err)) return -1;
    int rc = parse_ids(tok, option(self, "--ids")->text, &ids, err);
    if (!rc) {
        size_t bytes;
        char *text = tokenizer_decode_sized(tok, ids.ids, ids.count, false, &bytes);
        fwrite(text, 1, bytes, stdout);
        putchar('\n');
        free(text);
    }
    token_list_free(&ids);
    tokenizer_close(tok);
    return rc;
}

struct command command_detokenize = {
    .name = "detokenize",
    .summary = "token ids to text",
    .description = "Special tokens are kept, blanks are not cleaned up, ill-formed UTF-8 becomes U+FFFD; one newline follows.\n\n"
                   "  stagediff detokenize --model llama --ids 128000,9906,1917",
    .options = detokenize_options,
    .run = run_detokenize,
};
