/* command_evaluate.c - `stagediff evaluate`: a data file's questions or statements answered and scored; or a run's stage. */
#include "analysis/edit.h"
#include "analysis/evaluate.h"
#include "analysis/run.h"
#include "host/file.h"
#include "models/command.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static double share(double correct, long n) { return n ? correct / (double)n : NAN; }

static void print_table(const struct tallies *t) {
    printf("%-28s %8s %10s\n", t->count > 1 ? "relation or type" : "", "n", "accuracy");
    for (int i = 0; i < t->count; i++)
        printf("%-28s %8ld %9.2f%%\n", t->at[i].relation, t->at[i].n, 100 * share(t->at[i].correct, t->at[i].n));
}

static json_t *counted(const struct tally *t) {
    return json_pack("{s:I, s:f, s:f}", "n", (json_int_t)t->n, "correct", t->correct, "accuracy", share(t->correct, t->n));
}

/* {"task": .., "samples": .., "n": .., "correct": .., "accuracy": .., "relations": {..}}; VSR: p_correct, mean probability of the truth. */
static void print_json(const struct evaluation *e, const struct samples *s, const struct tallies *t) {
    const struct tally none = {.n = 0};
    json_t *top = t->count ? counted(&t->at[0]) : json_pack("{s:i, s:f, s:n}", "n", 0, "correct", none.correct, "accuracy"),
           *by = json_object();
    json_object_set_new(top, "task", json_string(e->task == EVALUATE_VSR ? "vsr" : "vqa"));
    json_object_set_new(top, "samples", json_integer((json_int_t)e->count));
    for (int i = 1; i < t->count; i++) json_object_set_new(by, t->at[i].relation, counted(&t->at[i]));
    json_object_set_new(top, "relations", by);
    double sum = 0;
    for (size_t i = 0; i < e->count; i++)
        if (s->at[i].label >= 0) sum += s->at[i].label == 1 ? e->at[i].p_yes : 1 - e->at[i].p_yes;
    if (e->task == EVALUATE_VSR && e->scored) json_object_set_new(top, "p_correct", json_real(sum / (double)e->scored));
    json_dumpf(top, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(top);
}

static int write_answers(const char *path, const struct evaluation *e, const struct samples *s, struct error *err) {
    struct file_writer w = {0};
    if (file_writer_open(&w, path, err)) return -1;
    for (size_t i = 0; i < e->count; i++) {
        json_t *line = evaluated_json(e, i, &s->at[i]);
        json_dumpf(line, w.stream, JSON_COMPACT);
        fputc('\n', w.stream);
        json_decref(line);
    }
    return file_writer_commit(&w, err);
}

/* What the options say of the data and the task. */
static int options_read(const struct command *self, struct dataset *d, struct evaluation *e, struct error *err) {
    const char *task = option(self, "--task")->text;
    *d = (struct dataset){.data = (char *)(uintptr_t)option(self, "--data")->text,
                          .images = (char *)(uintptr_t)option(self, "--images")->text,
                          .annotations = (char *)(uintptr_t)option(self, "--annotations")->text,
                          .ask = (char *)(uintptr_t)option(self, "--ask")->text,
                          .samples = (long)option(self, "--samples")->number};
    *e = (struct evaluation){.max_new_tokens = (int)option(self, "--max-new-tokens")->number, .progress = "evaluate"};
    if (!d->data || !option(self, "--model")->text)
        return fail(err, "evaluate: give a CONFIG.json, or --model DIR and --data FILE; see stagediff evaluate --help");
    if (task && strcmp(task, "vqa") && strcmp(task, "vsr")) return fail(err, "evaluate: --task must be vqa or vsr, found %s", task);
    e->task = task && !strcmp(task, "vsr") ? EVALUATE_VSR : EVALUATE_VQA;
    return 0;
}

static int from_options(const struct command *self, struct error *err) {
    struct dataset d;
    struct samples s;
    struct evaluation e;
    struct tallies t = {0};
    struct model m = {0};
    struct edit_session edit = {0};
    struct probe *probes = NULL;
    int n_probes = 0;
    const char *out = option(self, "--out")->text;
    if (options_read(self, &d, &e, err) || dataset_open(&d, &s, err)) return -1;
    if (!option(self, "--task")->text) e.task = evaluation_task_of(&s);
    int status = command_open(&m, self, err);
    if (status == 0) status = edit_session_open(&edit, &m, option(self, "--edit")->text, err);
    if (status == 0) probes = edits_before(edit.edits, NULL, 0, &n_probes);
    if (status == 0) status = evaluate_samples(&m, &s, 0, s.count, probes, n_probes, (int)option(self, "--batch")->number, &e, err);
    if (status == 0 && out) status = write_answers(out, &e, &s, err);
    if (status == 0) {
        tally_all(&t, &e, &s, 0, NULL);
        if (option(self, "--json")->given)
            print_json(&e, &s, &t);
        else if (t.count)
            print_table(&t);
        if (!t.count) log_note("no line has anything to score against; %zu answers", e.count);
        if (fflush(stdout) || ferror(stdout)) status = fail(err, "cannot write to stdout");
    }
    tallies_free(&t);
    evaluation_free(&e);
    samples_free(&s);
    free(probes);
    edit_session_close(&edit);
    if (m.dev) command_close(&m);
    return status;
}

static int run(const struct command *self, struct error *err) {
    return run_stage_or_options(self, RUN_EVALUATE, "--data", from_options, err);
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .help = "the run's CONFIG.json (docs/config.md): its data sets, rows in run.db"},
    MODEL_OPTIONS_IF(false),
    {.name = "--data",
     .value = "FILE",
     .type = OPTION_TEXT,
     .help = "JSON lines (docs/cli.md), VSR's lines, VQAv2's questions, COCO's captions"},
    {.name = "--images", .value = "DIR", .type = OPTION_TEXT, .help = "folder of the pictures; without it the data file's"},
    {.name = "--annotations", .value = "FILE", .type = OPTION_TEXT, .help = "VQAv2's annotations, which hold the answers"},
    {.name = "--task",
     .type = OPTION_TEXT,
     .help =
         "vqa: generated answers, soft accuracy; vsr: yes or no by next-token mass; without it by the lines: vsr where they have a label"},
    {.name = "--ask",
     .value = "TEXT",
     .type = OPTION_TEXT,
     .help = "the question that is put: {question} and {caption} stand for the line's"},
    {.name = "--samples", .type = OPTION_INT, .low = 0, .high = 1e15, .fallback = "0", .help = "the first so many; 0: all"},
    {.name = "--max-new-tokens",
     .type = OPTION_INT,
     .low = 1,
     .high = 1 << 20,
     .fallback = "16",
     .help = "longest generated answer in tokens"},
    EDIT_OPTION,
    {.name = "--out",
     .value = "FILE.jsonl",
     .type = OPTION_TEXT,
     .help = "answers, a line a sample: id, text, score, and p_yes or stopped"},
    {.name = "--json", .type = OPTION_FLAG, .help = "one JSON object: task, samples, n, correct, accuracy, relations"},
    {.name = NULL},
};
struct command command_evaluate = {
    .name = "evaluate",
    .summary = "answers to a benchmark's questions or statements, scored as the benchmark scores them",
    .description = "VQA: greedy answers, the official normalisation and soft accuracy, by answer type. VSR: yes when the next token's mass "
                   "on yes is above\n"
                   "that on no, by relation. Reads the files of VSR, VQAv2 and COCO captions as they are published.\n\n"
                   "  stagediff evaluate --model DIR --data test.jsonl --images vsr/images\n"
                   "  stagediff evaluate --model DIR --data v2_OpenEnded_mscoco_val2014_questions.json --annotations "
                   "v2_mscoco_val2014_annotations.json \\\n"
                   "    --images coco --ask $'{question}\\nAnswer the question using a single word or phrase.' --out answers.jsonl\n"
                   "  stagediff evaluate tools/tinyworld/demo.json\n",
    .options = options,
    .run = run,
};
