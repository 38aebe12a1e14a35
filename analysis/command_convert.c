/* command_convert.c - `stagediff convert`: a dictionary of any readable format in the layout of another library (docs/dictionaries.md). */
#include "host/file.h"
#include "host/options.h"
#include "sae/sae.h"
#include <string.h>

static int read_layout(const struct option *o, enum sae_layout *to, struct error *err) {
    static const char *const names[] = {"saelens", "sparsify", "mmdiff", NULL};
    for (int i = 0; names[i]; i++)
        if (strcmp(o->text, names[i]) == 0) {
            *to = (enum sae_layout)i;
            return 0;
        }
    const char *near = nearest_name(o->text, names);
    return fail(err, "convert: --to must be saelens, sparsify or mmdiff, found '%s'%s%s%s", o->text, near ? "; did you mean " : "",
                near ? near : "", near ? "?" : "");
}

static int run(const struct command *self, struct error *err) {
    const char *from = option(self, "SRC")->text, *path = option(self, "DST")->text;
    const struct option *k = option(self, "--k");
    struct sae_host s = {0};
    enum sae_layout to = SAE_LAYOUT_SAELENS;
    if (read_layout(option(self, "--to"), &to, err)) return -1;
    const bool folder = to != SAE_LAYOUT_MMDIFF;
    if ((dir_exists(path) || file_exists(path)) && !option(self, "--force")->given)
        return fail(err, "%s: exists already; --force writes over it", path);
    if (folder ? file_exists(path) : dir_exists(path))
        return fail(err, "%s: is a %s, the %s layout is a %s; give another name", path, folder ? "file" : "folder", sae_layout_name(to),
                    folder ? "folder" : "file");
    if (sae_load(&s, from, err)) return -1;
    int status = sae_set_k(&s, k->given ? (int)k->number : 0, from, err);
    if (status == 0 && sae_can_save(&s, to, err)) status = error_context(err, "%s", from);
    if (status == 0) status = sae_save(&s, to, path, err);
    if (status == 0 && to == SAE_LAYOUT_MMDIFF && s.activation == SAE_TOPK && s.K != SAE_MMDIFF_K)
        log_note("%s: this layout means k %d; the dictionary's own, %d, is in it as `k`, which other readers may not look for", path,
                 SAE_MMDIFF_K, s.K);
    sae_host_free(&s);
    return status;
}

static struct option options[] = {
    {.name = "SRC", .type = OPTION_TEXT, .required = true, .help = "a dictionary: folder or file of any format in docs/dictionaries.md"},
    {.name = "DST", .type = OPTION_TEXT, .required = true, .help = "the folder to write; for mmdiff the file"},
    {.name = "--to", .value = "FORMAT", .type = OPTION_TEXT, .required = true, .help = "saelens, sparsify or mmdiff"},
    {.name = "--k", .type = OPTION_INT, .low = 1, .high = 1 << 20, .help = "active features of a TopK dictionary whose files do not say"},
    {.name = "--force", .type = OPTION_FLAG, .help = "write over what is there"},
    {.name = NULL},
};

struct command command_convert = {
    .name = "convert",
    .summary = "a dictionary in the layout of another library",
    .description =
        "The converted dictionary gives the same codes and the same reconstruction. What the other layout cannot say (a JumpReLU in\n"
        "sparsify's, say) is refused, and nothing is written.\n\n"
        "  stagediff convert Llama3_1-8B-Base-L12R-8x l12r_saelens --to saelens\n",
    .options = options,
    .run = run,
};
