/* command_train.c - `stagediff train`: a run's first stage from CONFIG.json, or the same loop fed from a matrix of rows. */
#include "analysis/run.h"
#include "analysis/train_rows.h"
#include "host/file.h"
#include "host/options.h"
#include <string.h>

#include "kernels/device.h"

static bool equal(const char *a, const char *b) { return strcmp(a, b) == 0; }

static int one_of(const struct command *self, const char *name, const char *first, const char *second, bool *is_first, struct error *err) {
    const char *text = option(self, name)->text;
    if (!equal(text, first) && !equal(text, second)) {
        const char *const both[] = {first, second, NULL};
        const char *near = nearest_name(text, both);
        return fail(err, "train: %s must be %s or %s, found %s; the nearest valid value is %s", name, first, second, text,
                    near ? near : first);
    }
    *is_first = equal(text, first);
    return 0;
}

static int from_rows(const struct command *self, struct device *dev, struct error *err) {
    struct train_rows j = {.settings = train_defaults};
    static const char *const needed[] = {"--tensor", "--steps", "--batch", "--lr", "--out"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!option(self, needed[i])->given) return fail(err, "train: --rows needs %s as well; see stagediff train --help", needed[i]);
    if (option(self, "--sae")->given == option(self, "--random")->given)
        return fail(err, "train: give one start, --sae DIR or --random M%s", option(self, "--sae")->given ? ", not both" : "");
    if (option(self, "--random")->given && !option(self, "--k")->given)
        return fail(err, "train: --random needs --k, the active features of a row");
    bool f32 = true;
    if (one_of(self, "--unit-norm-decoder", "on", "off", &j.settings.unit_norm_decoder, err) ||
        one_of(self, "--products", "f32", "bf16", &f32, err))
        return -1;
    j.rows = option(self, "--rows")->text, j.tensor = option(self, "--tensor")->text;
    j.sae = option(self, "--sae")->text, j.features = (int)option(self, "--random")->number, j.k = (int)option(self, "--k")->number;
    j.steps = (long)option(self, "--steps")->number, j.batch = (int)option(self, "--batch")->number;
    j.shuffle = !option(self, "--no-shuffle")->given, j.seed = (unsigned long)option(self, "--seed")->number;
    j.out = option(self, "--out")->text;
    j.settings.bf16_products = !f32, j.settings.remove_parallel = option(self, "--remove-parallel")->given;
    j.settings.lr = option(self, "--lr")->number, j.settings.max_batch = j.batch;
    return train_rows(&j, dev, err);
}

static int from_config(const struct command *self, struct error *err) {
    struct run_session s;
    int status = run_session_open(&s, option(self, "CONFIG")->text, self->threads, err);
    if (status == 0) status = run_stage(&s.c, s.dev, s.db, RUN_TRAIN, err);
    run_session_close(&s);
    return status;
}

static int run(const struct command *self, struct error *err) {
    const struct option *config = option(self, "CONFIG"), *rows = option(self, "--rows");
    char why[256] = "";
    if (config->given == rows->given)
        return fail(err, "train: give a CONFIG.json or --rows FILE%s; see stagediff train --help", config->given ? ", not both" : "");
    for (const struct option *o = self->options; config->given && o->name; o++)
        if (o != config && o->given)
            return fail(err, "train: %s goes with --rows; with a CONFIG.json the settings stand in that file", o->name);
    if (config->given) return from_config(self, err);
    struct device *dev = device_open(0, self->threads, why, sizeof why);
    if (!dev) return fail(err, "no device: %s", why);
    int status = from_rows(self, dev, err);
    device_close(dev);
    return status;
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .help = "the run's CONFIG.json (docs/config.md): streams samples through the model"},
    {.name = "--rows", .value = "FILE", .type = OPTION_TEXT, .help = "instead: safetensors file with rows of activations"},
    {.name = "--tensor", .value = "NAME", .type = OPTION_TEXT, .help = "name of the tensor in it, (N, d) or (.., d)"},
    {.name = "--sae", .value = "DIR", .type = OPTION_TEXT, .help = "start from this dictionary (Llama Scope or SAELens folder)"},
    {.name = "--random", .type = OPTION_INT, .low = 1, .high = 1 << 26, .help = "start from so many random features"},
    {.name = "--k", .type = OPTION_INT, .low = 1, .high = 1 << 20, .help = "active features of a row; without it the start's own, else 50"},
    {.name = "--steps", .type = OPTION_INT, .low = 1, .high = 1e12, .help = "optimizer steps"},
    {.name = "--batch", .type = OPTION_INT, .low = 1, .high = 1 << 24, .help = "rows a step"},
    {.name = "--lr", .type = OPTION_REAL, .low = 0, .high = 1e6, .help = "Adam's learning rate"},
    {.name = "--no-shuffle", .type = OPTION_FLAG, .help = "batch s is rows [sB, (s+1)B) modulo N"},
    {.name = "--seed",
     .type = OPTION_INT,
     .low = 0,
     .high = 9007199254740992.0,
     .fallback = "0",
     .help = "of the shuffle and the random start"},
    {.name = "--unit-norm-decoder",
     .value = "ON/OFF",
     .type = OPTION_TEXT,
     .fallback = "on",
     .help = "on or off: decoder rows set to unit norm after each step"},
    {.name = "--remove-parallel", .type = OPTION_FLAG, .help = "take the part along a decoder row from its gradient before Adam"},
    {.name = "--products",
     .value = "TYPE",
     .type = OPTION_TEXT,
     .fallback = "f32",
     .help = "f32 or bf16: operands of the encoder's product"},
    {.name = "--out", .value = "DIR", .type = OPTION_TEXT, .help = "folder of the trained dictionary (SAELens layout) and metrics.jsonl"},
    {.name = NULL},
};

struct command command_train = {
    .name = "train",
    .summary = "fine-tune dictionaries on streamed activations, or one on a matrix of rows",
    .description =
        "With CONFIG.json: one dictionary a layer and regime (full, image, text, random) from one pass of the model over the samples;\n"
        "results in the run's folder and run.db. A stopped run (Ctrl-C, SIGTERM) goes on where it was when started again.\n"
        "With --rows: TopK, FVU loss, Adam as docs/cli.md defines them; metrics.jsonl holds a line a step.\n\n"
        "  stagediff train run.json\n"
        "  stagediff train --rows rows.safetensors --tensor x --random 16384 --k 50 --steps 1000 --batch 4096 --lr 2e-4 --out sae\n",
    .options = options,
    .run = run,
};
