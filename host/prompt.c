/* prompt.c - a data line as tokens with kinds: the text comes from the line's prompt or from a conversation template; it is
 * tokenised in the pieces that <image> leaves (as the original LLaVA does), with one BOS. Templates: formats.md 5.4. */
#include "host/file.h"
#include "host/samples.h"
#include "host/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

#define MARK "<image>"
#define LLAVA_SYSTEM                                                                                                                       \
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "              \
    "and assist the user with a variety of tasks using natural language."
#define VICUNA_SYSTEM                                                                                                                      \
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "           \
    "answers to the user's questions."
/* VSR's statement as the published ablation asks it (papers.md 1.6). */
#define VSR_BEFORE   "Is the following statement correct? Answer only with 'Yes' or 'No'.\nStatement: "
#define VSR_AFTER    "\nAnswer:"
#define HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"

/* What stands before and after the question; `image` is what a picture puts in between, before the question. */
static const struct template {
    const char *name, *before, *image, *after;
    const char *before_answer;
    bool llama3; /* spells LLaMA-3's special tokens */
}
templates[] = {
    [TEMPLATE_NONE] = {.name = NULL},
    [TEMPLATE_LLAMA_3_1] = {"llama_3_1", "<|begin_of_text|>" HEADER("system") LLAVA_SYSTEM "<|eot_id|>" HEADER("user"), MARK "\n",
                            "<|eot_id|>" HEADER("assistant"), "", true},
    [TEMPLATE_VICUNA_V1] = {"vicuna_v1", VICUNA_SYSTEM " USER: ", MARK "\n", " ASSISTANT:", " ", false},
    [TEMPLATE_PLAIN] = {"plain", "", MARK, "", "", false},
    [TEMPLATE_CHAT_LLAMA3] = {"llama3", "<|begin_of_text|>" HEADER("user"), MARK "\n", "<|eot_id|>" HEADER("assistant"), "", true},
};

/* ---- the text and which of its bytes are of which kind ---- */
struct span {
    size_t end;
    enum token_kind kind;
};
struct script {
    char *text;
    size_t bytes;
    struct span spans[8];
    int n_spans;
};

static void write(struct script *s, const char *text, enum token_kind kind) {
    size_t n = strlen(text);
    if (!n) return;
    s->text = memory_grow(s->text, s->bytes + n + 1, 1);
    memcpy(s->text + s->bytes, text, n + 1);
    s->bytes += n;
    s->spans[s->n_spans++] = (struct span){s->bytes, kind};
}

static enum token_kind kind_at(const struct script *s, size_t byte) {
    int i = 0;
    while (i + 1 < s->n_spans && byte >= s->spans[i].end) i++;
    return s->n_spans ? s->spans[i].kind : KIND_QUESTION;
}

static int check_template(const struct tokenizer *tok, enum prompt_template t, struct error *err) {
    if (t == TEMPLATE_NONE)
        return fail(
            err,
            "the line has a question, but the checkpoint's conversation template is not known; give 'prompt' instead, or --template NAME "
            "(llama_3_1, vicuna_v1, plain, llama3)");
    const char *const needed[] = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
    for (int i = 0; templates[t].llama3 && i < 4; i++)
        if (tokenizer_id(tok, needed[i]) < 0)
            return fail(
                err, "the template %s needs the token %s, which the tokenizer does not have; give 'prompt' instead, or another --template",
                templates[t].name, needed[i]);
    return 0;
}

static int write_script(struct script *text, const struct tokenizer *tok, enum prompt_template t, const struct sample *s,
                        struct error *err) {
    if (s->prompt) {
        write(text, s->prompt, KIND_QUESTION);
        return 0;
    }
    if (!s->question && !s->caption) return fail(err, "the line has neither 'prompt' nor 'question' nor 'caption'");
    if (check_template(tok, t, err)) return -1;
    write(text, templates[t].before, KIND_TEMPLATE);
    if (s->image) write(text, templates[t].image, KIND_TEMPLATE);
    if (!s->question) write(text, VSR_BEFORE, KIND_QUESTION);
    write(text, s->question ? s->question : s->caption, KIND_QUESTION);
    if (!s->question) write(text, VSR_AFTER, KIND_QUESTION);
    write(text, templates[t].after, KIND_TEMPLATE);
    return 0;
}

/* ---- tokens ---- */
struct builder {
    struct token_list ids, kinds;
    int image_start;
};

static void push(struct builder *b, int id, enum token_kind kind) {
    token_list_push(&b->ids, id);
    token_list_push(&b->kinds, (int)kind);
}

static void push_image(struct builder *b, int rows) {
    b->image_start = (int)b->ids.count;
    for (int i = 0; i < rows; i++) push(b, IMAGE_TOKEN, KIND_IMAGE);
}

/* The chunk text[from, to) of the script. */
static int push_chunk(struct builder *b, const struct tokenizer *tok, const struct script *s, size_t from, size_t to, struct error *err) {
    struct token_list starts = {0};
    size_t first = b->ids.count;
    int rc = tokenizer_encode_starts(tok, s->text + from, to - from, &b->ids, &starts, err);
    for (size_t i = first; !rc && i < b->ids.count; i++) token_list_push(&b->kinds, (int)kind_at(s, from + (size_t)starts.ids[i - first]));
    token_list_free(&starts);
    return rc;
}

static int count_marks(const struct script *s) {
    int n = 0;
    for (const char *p = s->text; p && (p = strstr(p, MARK)); p += strlen(MARK)) n++;
    return n;
}

/* Puts BOS in front (unless the text spells it there), the rows at the mark or right after BOS, the chunks around them. */
static int push_script(struct builder *b, const struct tokenizer *tok, const struct script *s, bool picture, int rows, struct error *err) {
    int marks = count_marks(s), bos = tokenizer_bos(tok);
    if (marks > (picture ? 1 : 0))
        return fail(err,
                    picture ? "the text has %d marks " MARK " but the line has one picture"
                            : "the text has %d mark(s) " MARK " but the line has no picture",
                    marks);
    if (picture && rows <= 0) return fail(err, "the line has a picture, but the model takes none");
    const char *bos_text = bos >= 0 ? tokenizer_piece(tok, bos) : "<|begin_of_text|>";
    size_t at = 0, n_bos = strlen(bos_text), bytes = s->bytes;
    bool spelled = bytes >= n_bos && !memcmp(s->text, bos_text, n_bos) && tokenizer_id(tok, bos_text) >= 0;
    if (spelled) {
        push(b, tokenizer_id(tok, bos_text), KIND_BOS);
        at = n_bos;
    }
    for (int i = 0; !spelled && i < tok->n_prefix; i++) push(b, tok->prefix[i], i ? KIND_TEMPLATE : KIND_BOS);
    if (picture && !marks) push_image(b, rows);
    const char *mark = marks ? strstr(s->text, MARK) : NULL;
    if (mark) {
        size_t before = (size_t)(mark - s->text);
        if (push_chunk(b, tok, s, at, before, err)) return -1;
        push_image(b, rows);
        at = before + strlen(MARK);
    }
    if (push_chunk(b, tok, s, at, bytes, err)) return -1;
    for (int i = 0; i < tok->n_suffix; i++) push(b, tok->suffix[i], KIND_TEMPLATE);
    return 0;
}

/* The answer is tokenised by itself: the tokens before it are those that generate would have seen. */
static int push_answer(struct builder *b, const struct tokenizer *tok, enum prompt_template t, const struct sample *s, struct error *err) {
    struct script answer = {0};
    if (!s->prompt && t != TEMPLATE_NONE) write(&answer, templates[t].before_answer, KIND_ANSWER);
    write(&answer, s->answer, KIND_ANSWER);
    int rc = answer.bytes ? push_chunk(b, tok, &answer, 0, answer.bytes, err) : 0;
    free(answer.text);
    return rc;
}

int prompt_build(struct prompt *p, const struct tokenizer *tok, enum prompt_template t, const struct sample *s, int n_image_rows,
                 bool with_answer, struct error *err) {
    struct script text = {0};
    struct builder b = {.image_start = -1};
    *p = (struct prompt){.image_start = -1};
    int rc = write_script(&text, tok, t, s, err);
    if (!rc && !text.text) text.text = memory_string("");
    if (!rc) rc = push_script(&b, tok, &text, s->image != NULL, n_image_rows, err);
    if (!rc && with_answer && s->answer) rc = push_answer(&b, tok, t, s, err);
    if (!rc && !b.ids.count) rc = fail(err, "the prompt is empty: it gives no token");
    if (!rc) {
        p->count = (int)b.ids.count;
        p->image_start = b.image_start;
        p->kinds = memory_take(b.ids.count, 1);
        for (size_t i = 0; i < b.ids.count; i++) p->kinds[i] = (uint8_t)b.kinds.ids[i];
        p->ids = b.ids.ids;
        b.ids = (struct token_list){0};
    }
    token_list_free(&b.ids);
    token_list_free(&b.kinds);
    free(text.text);
    return rc;
}

void prompt_free(struct prompt *p) {
    free(p->ids);
    free(p->kinds);
    *p = (struct prompt){.image_start = -1};
}

/* ---- which template a checkpoint has ---- */

/* Blanks between the words of a template mean nothing, and its line breaks are written as \n or as themselves. */
static char *without_blanks(const char *text) {
    char *out = memory_take(strlen(text) + 1, 1), *o = out;
    for (; *text; text++) {
        if (*text == ' ' || *text == '\t') continue;
        if (text[0] == '\\' && text[1] == 'n') {
            *o++ = '\n';
            text++;
            continue;
        }
        *o++ = *text;
    }
    return out;
}

#define TURN                                                                                                                               \
    "set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"        \
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
#define ASSISTANT "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"

/* Templates whose result is known: LLaMA-3's turns, with and without the switch for the last header. */
static bool is_llama3_chat(const char *chat) {
    static const char *const known[] = {
        "{% for message in messages %}{% " TURN ASSISTANT,
        "{% for message in messages %}{% " TURN "{% if add_generation_prompt %}" ASSISTANT "{% endif %}",
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% " TURN ASSISTANT,
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% " TURN "{% if add_generation_prompt %}" ASSISTANT
        "{% endif %}",
    };
    char *a = without_blanks(chat);
    bool same = false;
    for (size_t i = 0; i < sizeof known / sizeof *known && !same; i++) {
        char *b = without_blanks(known[i]);
        same = !strcmp(a, b);
        free(b);
    }
    free(a);
    return same;
}

int prompt_template_of(enum prompt_template *t, const struct tokenizer *tok, bool is_llava, struct error *err) {
    const char *chat = tokenizer_chat_template(tok);
    *t = TEMPLATE_NONE;
    if (is_llava && tokenizer_id(tok, "<|start_header_id|>") >= 0 && tokenizer_id(tok, "<|eot_id|>") >= 0)
        *t = TEMPLATE_LLAMA_3_1;
    else if (is_llava && tokenizer_id(tok, "<s>") >= 0 && tokenizer_id(tok, "</s>") >= 0)
        *t = TEMPLATE_VICUNA_V1;
    else if (!is_llava && chat && is_llama3_chat(chat))
        *t = TEMPLATE_CHAT_LLAMA3;
    else
        return fail(err, "the checkpoint %s; give 'prompt' instead of 'question', or --template NAME (llama_3_1, vicuna_v1, plain, llama3)",
                    is_llava ? "has a tokenizer of neither LLaMA-3's nor LLaMA-2's kind, so its conversation template is not known"
                    : chat   ? "has a chat template that is not one of those known"
                             : "has no chat template");
    return 0;
}
