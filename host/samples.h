/* samples.h - data lines (JSONL) as docs/cli.md fixes them, and prompts built from them. */
#ifndef HOST_SAMPLES_H
#define HOST_SAMPLES_H
#include "host/error.h"
#include "host/tokenizer.h"
#include <jansson.h>
#include <stdint.h>

enum token_kind { KIND_BOS = 0, KIND_IMAGE = 1, KIND_TEMPLATE = 2, KIND_QUESTION = 3, KIND_ANSWER = 4, KIND_COUNT = 5 };
extern const char *const token_kind_names[KIND_COUNT]; /* "bos", "image", "template", "question", "answer" */
#define IMAGE_TOKEN (-200)

struct sample {  /* owned by struct samples; strings NULL when absent */
    char *id;    /* JSON text of the id: "\"a\"" or "17"; the index when absent */
    char *image; /* path, joined with the data file's folder */
    char *prompt, *question, *answer;
    char *caption, *relation;
    int label;    /* 0, 1, -1 when absent */
    json_t *json; /* the whole line */
    long line;    /* 1-based, for messages; 0: from the command line */
};
struct samples {
    struct sample *at;
    size_t count;
    char *path;
};
int samples_open(struct samples *s, const char *path, struct error *err); /* bad line: error with file, line number, what */
/* The same, or a benchmark's files as they are published (samples_published.c): VQAv2's questions, with annotations its answers too
 * (a line has question_id, image_id, answers, answer_type, ..); COCO's captions (a line a picture: image_id, captions); VSR's JSON lines.
 * images: folder of the pictures, NULL: the data file's. annotations may be NULL. */
int samples_open_published(struct samples *s, const char *path, const char *annotations, const char *images, struct error *err);
void samples_free(struct samples *s);

/* How a checkpoint turns a question into text. */
enum prompt_template {
    TEMPLATE_NONE,
    TEMPLATE_LLAMA_3_1,
    TEMPLATE_VICUNA_V1,
    TEMPLATE_PLAIN,
    TEMPLATE_CHAT_LLAMA3,
    TEMPLATE_CHAT_LLAVA,
    TEMPLATE_CHATML,
    TEMPLATE_SMOLLM2
};
#define TEMPLATE_NAMES "llama_3_1, vicuna_v1, plain, llama3, llava_1_5, chatml, smollm2"
int prompt_template_named(enum prompt_template *t, const char *name, struct error *err); /* --template NAME */
const char *prompt_template_name(enum prompt_template t);                                /* NULL: none */
/* One sample as tokens. ids holds IMAGE_TOKEN once per image row (n_image_rows of them per picture). */
struct prompt {
    int *ids;
    uint8_t *kinds;
    int count;
    int image_start; /* first image row, -1 without picture */
};
/* The text: the line's prompt, else its question in the template, else its caption as VSR's yes-no question in the template.
 * with_answer: the line's answer is appended, tokenised by itself (kind answer); no end of turn follows.
 * n_image_rows: rows one picture becomes. Rules: docs/cli.md "Data lines"; chunked tokenisation around <image>, one BOS. */
int prompt_build(struct prompt *p, const struct tokenizer *tok, enum prompt_template t, const struct sample *s, int n_image_rows,
                 bool with_answer, struct error *err);
void prompt_free(struct prompt *p);
/* The template of a checkpoint folder (llava: llama_3_1 or vicuna_v1 by tokenizer; plain LLM: its chat template where known). */
int prompt_template_of(enum prompt_template *t, const struct tokenizer *tok, bool is_llava, struct error *err);
#endif
