/* prompt.c - a data line as tokens with kinds: the text comes from the line's prompt or from a conversation template; it is
 * tokenised in the pieces that <image> leaves, as the checkpoint's own code does, with one BOS. Templates: formats.md 5.4. */
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
#define VSR_BEFORE    "Is the following statement correct? Answer only with 'Yes' or 'No'.\nStatement: "
#define VSR_AFTER     "\nAnswer:"
#define LLAMA3_TOKENS "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
#define HEADER(role)  "<|start_header_id|>" role "<|end_header_id|>\n\n"

#define IM(role, text) "<|im_start|>" role "\n" text "<|im_end|>\n"
#define SMOLLM2_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

/* What stands before and after the question; `image` is what a picture puts in between, before the question. */
static const struct template {
    const char *name, *before, *image, *after;
    const char *before_answer;
    const char *needed[4]; /* special tokens that the text spells */
}
templates[] = {
    [TEMPLATE_NONE] = {.name = NULL},
    [TEMPLATE_LLAMA_3_1] = {"llama_3_1",
                            "<|begin_of_text|>" HEADER("system") LLAVA_SYSTEM "<|eot_id|>" HEADER("user"),
                            MARK "\n",
                            "<|eot_id|>" HEADER("assistant"),
                            "",
                            {LLAMA3_TOKENS}},
    [TEMPLATE_VICUNA_V1] = {"vicuna_v1", VICUNA_SYSTEM " USER: ", MARK "\n", " ASSISTANT:", " ", {NULL}},
    [TEMPLATE_PLAIN] = {"plain", "", MARK, "", "", {NULL}},
    [TEMPLATE_CHAT_LLAMA3] =
        {"llama3", "<|begin_of_text|>" HEADER("user"), MARK "\n", "<|eot_id|>" HEADER("assistant"), "", {LLAMA3_TOKENS}},
    [TEMPLATE_CHAT_LLAVA] = {"llava_1_5", "USER: ", MARK "\n", " ASSISTANT:", " ", {NULL}},
    [TEMPLATE_CHATML] =
        {"chatml", "<|im_start|>user\n", MARK "\n", "<|im_end|>\n<|im_start|>assistant\n", "", {"<|im_start|>", "<|im_end|>"}},
    [TEMPLATE_SMOLLM2] = {"smollm2",
                          IM("system", SMOLLM2_SYSTEM) "<|im_start|>user\n",
                          MARK "\n",
                          "<|im_end|>\n<|im_start|>assistant\n",
                          "",
                          {"<|im_start|>", "<|im_end|>"}},
};
enum { N_TEMPLATES = sizeof templates / sizeof *templates };

const char *prompt_template_name(enum prompt_template t) { return templates[t].name; }

int prompt_template_named(enum prompt_template *t, const char *name, struct error *err) {
    for (int i = TEMPLATE_NONE + 1; i < N_TEMPLATES; i++)
        if (!strcmp(name, templates[i].name)) {
            *t = (enum prompt_template)i;
            return 0;
        }
    return fail(err, "--template %s: unknown; templates: " TEMPLATE_NAMES, name);
}

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
            err, "the line has a question, but the checkpoint's conversation template is not known; give 'prompt' instead, or --template "
                 "NAME (" TEMPLATE_NAMES ")");
    for (int i = 0; i < 4 && templates[t].needed[i]; i++)
        if (tokenizer_id(tok, templates[t].needed[i]) < 0)
            return fail(
                err, "the template %s needs the token %s, which the tokenizer does not have; give 'prompt' instead, or another --template",
                templates[t].name, templates[t].needed[i]);
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

/* text[from, to) of the script; rows > 0: the tokenizer's own token `<image>` becomes so many image rows. */
static int push_chunk(struct builder *b, const struct tokenizer *tok, const struct script *s, size_t from, size_t to, enum text_place place,
                      int rows, struct error *err) {
    struct token_list ids = {0}, starts = {0};
    const int image = rows > 0 ? tokenizer_id(tok, MARK) : -1;
    int rc = tokenizer_encode_starts(tok, s->text + from, to - from, place, &ids, &starts, err);
    for (size_t i = 0; !rc && i < ids.count; i++) {
        if (image >= 0 && ids.ids[i] == image)
            push_image(b, rows);
        else
            push(b, ids.ids[i], kind_at(s, from + (size_t)starts.ids[i]));
    }
    token_list_free(&ids);
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
    /* llava-hf's tokenizers know the mark: then the text is one. The original LLaVA's do not: it is cut there, and both begin anew. */
    const bool known = tokenizer_id(tok, MARK) >= 0;
    enum text_place place = spelled || (picture && !marks && known) ? TEXT_AFTER_TOKEN : TEXT_BEGINS;
    if (picture && !marks) push_image(b, rows);
    const char *mark = marks && !known ? strstr(s->text, MARK) : NULL;
    if (mark) {
        size_t before = (size_t)(mark - s->text);
        if (push_chunk(b, tok, s, at, before, place, 0, err)) return -1;
        push_image(b, rows);
        at = before + strlen(MARK);
        place = TEXT_BEGINS;
    }
    if (push_chunk(b, tok, s, at, bytes, place, marks && known ? rows : 0, err)) return -1;
    for (int i = 0; i < tok->n_suffix; i++) push(b, tok->suffix[i], KIND_TEMPLATE);
    return 0;
}

/* The answer is tokenised by itself, as text that goes on: the tokens before it are those that generate would have seen. */
static int push_answer(struct builder *b, const struct tokenizer *tok, enum prompt_template t, const struct sample *s, struct error *err) {
    struct script answer = {0};
    if (!s->prompt && t != TEMPLATE_NONE) write(&answer, templates[t].before_answer, KIND_ANSWER);
    write(&answer, s->answer, KIND_ANSWER);
    int rc = answer.bytes ? push_chunk(b, tok, &answer, 0, answer.bytes, TEXT_GOES_ON, 0, err) : 0;
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

/* Blanks between the words of a template mean nothing, those between quotes do; line breaks are written as \n or as themselves. */
static char *without_blanks(const char *text) {
    char *out = memory_take(strlen(text) + 1, 1), *o = out;
    bool quoted = false;
    for (; *text; text++) {
        quoted ^= *text == '\'';
        if (!quoted && (*text == ' ' || *text == '\t')) continue;
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
#define ASSISTANT     "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
#define WHEN(text)    "{% if add_generation_prompt %}" text "{% endif %}"
#define CHATML_TURN   "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
#define CHATML_PROMPT WHEN("{{ '<|im_start|>assistant\n' }}")
#define CONTENT(type) "{% for content in message['content'] | selectattr('type', 'equalto', '" type "') %}"

/* Chat templates whose result is known: LLaMA-3's turns with and without the switch for the last header, ChatML, SmolLM2's, llava-hf's. */
static const struct {
    const char *text;
    enum prompt_template t;
} known_chats[] = {
    {"{% for message in messages %}{% " TURN ASSISTANT, TEMPLATE_CHAT_LLAMA3},
    {"{% for message in messages %}{% " TURN WHEN(ASSISTANT), TEMPLATE_CHAT_LLAMA3},
    {"{% set loop_messages = messages %}{% for message in loop_messages %}{% " TURN ASSISTANT, TEMPLATE_CHAT_LLAMA3},
    {"{% set loop_messages = messages %}{% for message in loop_messages %}{% " TURN WHEN(ASSISTANT), TEMPLATE_CHAT_LLAMA3},
    {"{% for message in messages %}" CHATML_TURN CHATML_PROMPT, TEMPLATE_CHATML},
    {"{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '" IM(
         "system", SMOLLM2_SYSTEM) "' }}{% endif %}" CHATML_TURN CHATML_PROMPT,
     TEMPLATE_SMOLLM2},
    {"{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
     "{# Render all images first #}" CONTENT(
         "image") "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
                  "{% if message['role'] != 'assistant' %}" CONTENT("text") "{{ content['text'] + ' '}}{% endfor %}{% else %}" CONTENT(
                      "text") "{% generation %}{{ content['text'] + ' "
                              "'}}{% endgeneration %}{% endfor %}{% "
                              "endif %}{% endfor %}" WHEN("{{ "
                                                          "'ASSISTANT:' "
                                                          "}}"),
     TEMPLATE_CHAT_LLAVA},
};

static enum prompt_template template_of_chat(const char *chat) {
    char *a = without_blanks(chat);
    enum prompt_template t = TEMPLATE_NONE;
    for (size_t i = 0; i < sizeof known_chats / sizeof *known_chats && t == TEMPLATE_NONE; i++) {
        char *b = without_blanks(known_chats[i].text);
        if (!strcmp(a, b)) t = known_chats[i].t;
        free(b);
    }
    free(a);
    return t;
}

int prompt_template_of(enum prompt_template *t, const struct tokenizer *tok, bool is_llava, struct error *err) {
    const char *chat = tokenizer_chat_template(tok);
    *t = TEMPLATE_NONE;
    if (is_llava && tokenizer_id(tok, "<|start_header_id|>") >= 0 && tokenizer_id(tok, "<|eot_id|>") >= 0)
        *t = TEMPLATE_LLAMA_3_1;
    else if (is_llava && tokenizer_id(tok, "<s>") >= 0 && tokenizer_id(tok, "</s>") >= 0)
        *t = TEMPLATE_VICUNA_V1;
    else if (!is_llava && chat)
        *t = template_of_chat(chat);
    if (*t == TEMPLATE_NONE)
        return fail(err, "the checkpoint %s; give 'prompt' instead of 'question', or --template NAME (" TEMPLATE_NAMES ")",
                    is_llava ? "has a tokenizer of neither LLaMA-3's nor LLaMA-2's kind, so its conversation template is not known"
                    : chat   ? "has a chat template that is not one of those known"
                             : "has no chat template");
    return 0;
}
