/* tokenizer_decode.c - ids back to text, as the decoders of `tokenizers` do it: GPT-2's bytes; or, SentencePiece's, blanks for
 * U+2581, runs of <0x..> as the bytes they name, and the blank stripped that the prefix had put in front. */
#include "host/file.h"
#include "host/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

/* Bytes that a vocabulary string stands for; one with a character outside GPT-2's table stands for itself. */
static size_t byte_level_piece(const struct tokenizer *tok, const char *piece, char *out) {
    size_t n = strlen(piece), used = 0;
    for (size_t i = 0; i < n;) {
        unsigned c;
        i += utf8_get(piece + i, n - i, &c);
        if (c >= 512 || tok->char_byte[c] < 0) {
            memcpy(out, piece, n);
            return n;
        }
        out[used++] = (char)tok->char_byte[c];
    }
    return used;
}

static char *decode_byte_level(const struct tokenizer *tok, const int *ids, size_t count, size_t *length) {
    size_t most = 0, used = 0;
    for (size_t i = 0; i < count; i++) most += strlen(tok->pieces[ids[i]]);
    char *bytes = memory_take(most + 1, 1);
    for (size_t i = 0; i < count; i++) used += byte_level_piece(tok, tok->pieces[ids[i]], bytes + used);
    char *text = utf8_repair(bytes, &used);
    free(bytes);
    *length = used;
    return text;
}

/* ---- SentencePiece's ---- */
struct text {
    char *at;
    size_t bytes, capacity;
};

static void put(struct text *t, const char *bytes, size_t n) {
    if (t->bytes + n + 1 > t->capacity) {
        t->capacity = 2 * (t->bytes + n + 1);
        t->at = memory_grow(t->at, t->capacity, 1);
    }
    memcpy(t->at + t->bytes, bytes, n);
    t->bytes += n;
    t->at[t->bytes] = 0;
}

/* The byte that "<0x0A>" names, -1 for other pieces. */
static int byte_of(const char *piece) {
    static const char hex[] = "0123456789ABCDEF0123456789abcdef";
    if (strlen(piece) != 6 || memcmp(piece, "<0x", 3) != 0 || piece[5] != '>') return -1;
    const char *high = strchr(hex, piece[3]), *low = strchr(hex, piece[4]);
    return high && low ? (int)((high - hex) % 16 * 16 + (low - hex) % 16) : -1;
}

/* A run of bytes is text when all of it is; else every byte becomes U+FFFD. */
static void put_run(struct text *t, struct text *run) {
    bool good = run->bytes && utf8_valid(run->at, run->bytes) == run->bytes;
    if (good) put(t, run->at, run->bytes);
    for (size_t i = 0; !good && i < run->bytes; i++) put(t, "\xef\xbf\xbd", 3);
    run->bytes = 0;
}

static void put_piece(struct text *t, const struct tokenizer *tok, const char *piece, bool first) {
    const struct rewrite *r = &tok->spelled_blank;
    const size_t n = r->from ? strlen(r->from) : 0;
    for (const char *hit; n && (hit = strstr(piece, r->from)); piece = hit + n) {
        put(t, piece, (size_t)(hit - piece));
        if (!(first && tok->drop_first_blanks)) put(t, r->to, strlen(r->to));
    }
    put(t, piece, strlen(piece));
}

static char *decode_pieces(const struct tokenizer *tok, const int *ids, size_t count, size_t *length) {
    struct text t = {0}, run = {0};
    put(&t, "", 0);
    for (size_t i = 0; i < count; i++) {
        const char *piece = tok->pieces[ids[i]];
        int byte = tok->decode_bytes ? byte_of(piece) : -1;
        if (byte >= 0) {
            put(&run, &(char){(char)byte}, 1);
            continue;
        }
        put_run(&t, &run);
        put_piece(&t, tok, piece, i == 0);
    }
    put_run(&t, &run);
    size_t from = 0, to = t.bytes;
    while (from < to && (int)from < tok->strip_start && t.at[from] == ' ') from++;
    for (int i = 0; i < tok->strip_stop && to > from && t.at[to - 1] == ' '; i++) to--;
    memmove(t.at, t.at + from, to - from);
    t.at[to - from] = 0;
    *length = to - from;
    free(run.at);
    return t.at;
}

/* ---- the interface ---- */
char *tokenizer_decode_sized(const struct tokenizer *tok, const int *ids, size_t count, bool skip_special, size_t *length) {
    int *kept = memory_take(count + 1, sizeof *kept);
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        if (tokenizer_piece(tok, ids[i]) && !(skip_special && tok->special[ids[i]])) kept[n++] = ids[i];
    char *text = tok->byte_level ? decode_byte_level(tok, kept, n, length) : decode_pieces(tok, kept, n, length);
    free(kept);
    return text;
}

char *tokenizer_decode(const struct tokenizer *tok, const int *ids, size_t count, bool skip_special) {
    size_t bytes;
    return tokenizer_decode_sized(tok, ids, count, skip_special, &bytes);
}
