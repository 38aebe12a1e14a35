/* commands.c - every command of the program, in pipeline order. */
#include "host/options.h"
#include <stddef.h>

extern struct command command_tokenize, command_detokenize, command_preprocess;
extern struct command command_info;                                                       /* models/ */
extern struct command command_generate, command_harvest, command_encode, command_train;   /* analysis/ */
extern struct command command_diff, command_report, command_run, command_plan;            /* analysis/ */
extern struct command command_select, command_evaluate, command_vectors, command_convert; /* analysis/ */
extern struct command command_attribute, command_intervene, command_steer;                /* analysis/ */

struct command *const commands[] = {
    &command_info,      &command_tokenize, &command_detokenize, &command_preprocess, &command_generate,
    &command_harvest,   &command_encode,   &command_convert,    &command_plan,       &command_train,
    &command_diff,      &command_select,   &command_evaluate,   &command_vectors,    &command_attribute,
    &command_intervene, &command_steer,    &command_report,     &command_run,        NULL,
};
