/* edit.h - interventions on a model's activations: the edit language of docs/cli.md, read and checked whole before any model runs
 * (struct edit_list, on the host), and the probes that carry it out (struct edits, on the device).
 * Edits act in the order of the forward pass and, at one point, in the order of the list; each sees what those before it left. */
#ifndef ANALYSIS_EDIT_H
#define ANALYSIS_EDIT_H
#include "models/model.h"
#include "sae/sae.h"

enum edit_op { EDIT_PROJECT_OUT, EDIT_ADD, EDIT_HEAD, EDIT_FEATURE, EDIT_RECONSTRUCT, EDIT_OPS };
enum edit_point { EDIT_ATTN_OUT, EDIT_MLP_OUT, EDIT_RESID_POST, EDIT_POINTS };
struct edit_sae { /* a dictionary that edits name, loaded once, uploaded when first needed */
    char *path;
    struct sae_host host; /* TopK has its k */
    struct sae device;    /* dev NULL: not yet */
    bool *barred;         /* (M), owned: features that controls may not become; NULL: none */
};
struct edit { /* owned but for sae; which fields count depends on op */
    enum edit_op op;
    unsigned kinds;            /* rows: bit k is token kind k */
    bool after_image;          /* and only rows behind the image (batch_after_image) */
    bool *layers;              /* (L) */
    bool points[EDIT_POINTS];  /* project_out, add */
    float *vector;             /* (C), f32: project_out has it of unit length, add where "unit" says so */
    double scale;              /* project_out: y -= scale (y.u) u; add: y += scale v */
    int *heads, n_heads;       /* head */
    float *mean;               /* (L, H*D), rows of the layers named; NULL: zero */
    bool unit;                 /* add: vector was divided by its length */
    struct edit_sae *sae;      /* of the list: feature, reconstruct; project_out, add: whose decoder row vector is, NULL: a file's */
    int *features, n_features; /* feature; that decoder row */
    double value;              /* feature: y += (value - 1) z d (subtract is value 0), clamp: y += (value - z) d */
    bool clamp;
    bool keep_error; /* reconstruct; true: nothing changes */
};
struct edit_list {
    char *path; /* SPEC.json */
    struct edit *at;
    int n;
    struct edit_sae **saes;
    int n_saes;
    bool borrows; /* saes are another list's */
};
/* Reads SPEC.json for model m, with the files it names. Everything wrong with it is an error here; a dictionary at another place
 * than its own hook is a note. */
int edit_list_open(struct edit_list *l, const struct model *m, const char *path, struct error *err);
/* The same of a list in memory: `path` is what messages call it, files are named relative to `folder`. */
int edit_list_read(struct edit_list *l, const struct model *m, const json_t *list, const char *path, const char *folder, struct error *err);
/* A copy whose edits may be changed; the dictionaries stay those of l, which must live longer. */
void edit_list_copy(struct edit_list *copy, const struct edit_list *l, const struct model *m);
/* Appends {"op": "add"} at resid_post of a layer, behind the image. vector (d_model) is copied. */
void edit_list_add_vector(struct edit_list *l, const struct model *m, int layer, const float *vector, double scale);
int edit_sae_upload(struct edit_sae *s, struct device *dev, struct error *err); /* to s->device, once */
void edit_list_free(struct edit_list *l);                                       /* also of one that is all zero */

/* A list made ready on the model's device; borrows both. */
struct edits;
int edits_open(struct edits **e, const struct model *m, const struct edit_list *l, struct error *err);
void edits_close(struct edits *e); /* NULL is fine */
/* The list's probes and behind them `own`, which so see what the edits left; malloced. e NULL: own alone. */
struct probe *edits_before(struct edits *e, const struct probe *own, int n_own, int *n);

/* For commands: `--edit` of their options, read and ready in one; without it edits is NULL. */
struct edit_session {
    struct edit_list list;
    struct edits *edits;
};
#define EDIT_OPTION                                                                                                                        \
    { .name = "--edit", .value = "SPEC.json", .type = OPTION_TEXT, .help = "edits of activations while the model runs (docs/cli.md)" }
int edit_session_open(struct edit_session *s, const struct model *m, const char *path, struct error *err); /* path NULL: none */
void edit_session_close(struct edit_session *s);
#endif
