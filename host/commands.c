/* commands.c - every command of the program, in pipeline order. */
#include "host/options.h"
#include <stddef.h>

extern struct command command_tokenize, command_detokenize, command_preprocess;
extern struct command command_info, command_generate, command_harvest; /* models/ */
extern struct command command_encode, command_train;                   /* sae/, analysis/ */
extern struct command command_diff, command_report, command_run;       /* analysis/ */

struct command *const commands[] = {
#if __has_include("models/command_info.c")
    &command_info,
#endif
#if __has_include("host/command_text.c")
    &command_tokenize, &command_detokenize,
#endif
#if __has_include("host/command_image.c")
    &command_preprocess,
#endif
#if __has_include("models/command_generate.c")
    &command_generate,
#endif
#if __has_include("models/command_harvest.c")
    &command_harvest,
#endif
#if __has_include("sae/command_encode.c") || __has_include("analysis/command_encode.c")
    &command_encode,
#endif
#if __has_include("sae/command_train.c") || __has_include("analysis/command_train.c")
    &command_train,
#endif
#if __has_include("analysis/command_diff.c")
    &command_diff,
#endif
#if __has_include("analysis/command_report.c")
    &command_report,
#endif
#if __has_include("analysis/command_run.c")
    &command_run,
#endif
    NULL,
};
