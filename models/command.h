/* command.h - what the commands that run a model share: opening it from their options. */
#ifndef MODELS_COMMAND_H
#define MODELS_COMMAND_H
#include "host/options.h"
#include "models/model.h"

/* The options of every such command: --model, --vision-tower, --base, --template, --batch. */
#define MODEL_OPTIONS MODEL_OPTIONS_IF(true)
#define MODEL_OPTIONS_IF(needed)                                                                                                           \
    {.name = "--model",                                                                                                                    \
     .value = "DIR",                                                                                                                       \
     .type = OPTION_TEXT,                                                                                                                  \
     .required = needed,                                                                                                                   \
     .help = "Hugging Face folder of a LLaMA, LLaVA or CLIP checkpoint"},                                                                  \
        {.name = "--vision-tower",                                                                                                         \
         .value = "DIR",                                                                                                                   \
         .type = OPTION_TEXT,                                                                                                              \
         .help = "folder of the CLIP tower, where the checkpoint names one that is not on this disk"},                                     \
        {.name = "--base",                                                                                                                 \
         .value = "DIR",                                                                                                                   \
         .type = OPTION_TEXT,                                                                                                              \
         .help = "folder of the language model, where the checkpoint holds a projector alone (LLaVA's first stage)"},                      \
        {.name = "--template", .value = "NAME", .type = OPTION_TEXT, .help = "conversation template of `question`: " TEMPLATE_NAMES}, {    \
        .name = "--batch", .type = OPTION_INT, .low = 1, .high = 4096, .fallback = "8",                                                    \
        .help = "samples in one forward pass; changes nothing beyond f32 rounding"                                                         \
    }
/* Opens the device (m->dev) and the model. command_close undoes both. */
int command_open(struct model *m, const struct command *self, struct error *err);
void command_close(struct model *m);
#endif
