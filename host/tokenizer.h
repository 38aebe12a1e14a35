/* tokenizer.h - BPE tokenizers: byte-level (LLaMA-3, GPT-2 kind) from tokenizer.json, SentencePiece's (LLaMA-2, Vicuna) from
 * tokenizer.json or tokenizer.model. formats.md 7.2, 7.3. */
#ifndef HOST_TOKENIZER_H
#define HOST_TOKENIZER_H
#include "host/error.h"
#include <stdbool.h>
#include <stddef.h>
struct tokenizer;
struct token_list { /* grows; owned by the caller, freed with token_list_free */
    int *ids;
    size_t count, capacity;
};
void token_list_push(struct token_list *list, int id);
void token_list_free(struct token_list *list);

int tokenizer_open(struct tokenizer **tok, const char *model_dir, struct error *err); /* tokenizer.json, else tokenizer.model */
void tokenizer_close(struct tokenizer *tok);
/* Appends the ids of UTF-8 text; add_special: what add_special_tokens=True adds (BOS). Special tokens spelled in text are recognised. */
int tokenizer_encode(const struct tokenizer *tok, const char *text, size_t bytes, bool add_special, struct token_list *out,
                     struct error *err);
/* Malloced UTF-8 text, NUL-terminated; ill-formed bytes become U+FFFD. */
char *tokenizer_decode(const struct tokenizer *tok, const int *ids, size_t count, bool skip_special);
/* The same with its length, for text that may hold NUL characters. */
char *tokenizer_decode_sized(const struct tokenizer *tok, const int *ids, size_t count, bool skip_special, size_t *bytes);
const char *tokenizer_piece(const struct tokenizer *tok, int id); /* vocabulary string, NULL when out of range */
bool tokenizer_is_special(const struct tokenizer *tok, int id);
int tokenizer_id(const struct tokenizer *tok, const char *piece); /* -1 when absent */
int tokenizer_bos(const struct tokenizer *tok);                   /* id that add_special puts first, -1 when none */
int tokenizer_vocab(const struct tokenizer *tok);
/* text of the checkpoint's own chat template (tokenizer_config.json or chat_template.jinja), NULL when it has none */
const char *tokenizer_chat_template(const struct tokenizer *tok);
#endif
