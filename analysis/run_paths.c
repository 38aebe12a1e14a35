/* run_paths.c - where the dictionaries of a run lie, and which entry of a folder of base dictionaries belongs to a layer. */
#include "analysis/run.h"
#include "host/file.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

char *run_sae_path(const struct run_config *c, enum regime regime, int layer) {
    char name[64];
    snprintf(name, sizeof name, "sae/%s/layer_%d", regime_names[regime], layer);
    return path_join(c->out, name);
}

/* The layer that a name speaks of, -1 when it does not: "3", "layer_3", "layer.3", "layers-3", "blocks.3.hook_resid_post",
 * "l3r_8x", "Llama3_1-8B-Base-L3R-8x". Only residual-stream sites ("R") of Llama Scope's letters count. */
static int layer_of_name(const char *name) {
    static const char *const words[] = {"layers", "layer", "blocks"};
    char *end;
    if (isdigit((unsigned char)name[0])) {
        long n = strtol(name, &end, 10);
        if (*end == '\0' || strcmp(end, ".safetensors") == 0) return (int)n;
    }
    for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
        const char *at = strcasestr(name, words[w]);
        if (!at) continue;
        at += strlen(words[w]);
        at += strcspn(at, "0123456789") <= 1 ? strcspn(at, "0123456789") : 0;
        if (isdigit((unsigned char)*at)) return (int)strtol(at, NULL, 10);
    }
    for (const char *at = name; *at; at++) {
        bool starts = at == name || !isalnum((unsigned char)at[-1]);
        if (!starts || (*at != 'L' && *at != 'l') || !isdigit((unsigned char)at[1])) continue;
        long n = strtol(at + 1, &end, 10);
        if ((*end == 'R' || *end == 'r' || *end == '\0') && (*end == '\0' || !isalnum((unsigned char)end[1]))) return (int)n;
    }
    return -1;
}

char *run_base_sae_path(const struct run_config *c, int layer, struct error *err) {
    char *found = NULL;
    DIR *dir = opendir(c->saes);
    if (!dir) {
        fail(err, "%s: cannot list the folder of base dictionaries: %s", c->saes, strerror(errno));
        return NULL;
    }
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        if (entry->d_name[0] == '.' || layer_of_name(entry->d_name) != layer) continue;
        if (found) {
            fail(err, "%s: both %s and %s name layer %d; keep one dictionary a layer", c->saes, found, entry->d_name, layer);
            free(found);
            closedir(dir);
            return NULL;
        }
        found = strdup(entry->d_name);
    }
    closedir(dir);
    if (!found) {
        fail(err, "%s: no dictionary for layer %d (expected a folder named like layer_%d, l%dr_8x or ...-L%dR-8x)", c->saes, layer, layer,
             layer, layer);
        return NULL;
    }
    char *path = path_join(c->saes, found);
    free(found);
    return path;
}
