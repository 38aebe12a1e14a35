/* train_job.h - inside stage_train: what is trained, where the run stands, what it needs. */
#ifndef ANALYSIS_TRAIN_JOB_H
#define ANALYSIS_TRAIN_JOB_H
#include "analysis/ring.h"
#include "analysis/run.h"
#include "host/progress.h"
#include "host/samples.h"
#include "models/model.h"
#include "sae/trainer.h"

/* What the configuration, the model's and the dictionaries' headers say before anything is loaded (train_plan.c). */
struct train_plan {
    int n_layers, *layers; /* owned */
    int d, k, layers_at_once, n_groups;
    int *base_features;   /* (n_layers), M of the base dictionary, 0 without; owned */
    int *random_features; /* (n_layers); owned */
    int largest;          /* M of the largest dictionary that is trained */
    bool has_tower;
    size_t first, count; /* training samples */
    long total;          /* samples to stream: count x passes */
    struct train_settings settings;
};
/* first, count: the training samples (run_samples). Prints the memory arithmetic (log_note) and refuses what cannot fit. at_once > 0: use
 * that many layers (a resumed run's), else what the configuration or the free memory says. */
int train_plan_open(struct train_plan *p, const struct run_config *c, struct device *dev, size_t first, size_t count, int at_once,
                    struct error *err);
int train_plan_features(const struct train_plan *p, enum regime r, int slot); /* M; slot: index into layers */
void train_plan_free(struct train_plan *p);

/* Where a run stands: OUT/state/state.json, renamed into place after the files it names (train_state.c). */
struct train_state {
    bool found, done; /* done: every dictionary is in OUT/sae */
    int group;        /* layer group under way */
    int layers_at_once;
    long cursor;        /* samples streamed before the block under way */
    long block;         /* its number */
    int trainee, batch; /* position in it: this trainee's next batch; earlier trainees are through */
    long generation;
    long metrics_bytes; /* of metrics.jsonl that belong to this state */
    double elapsed;     /* seconds of earlier processes */
    long rows;          /* SAE rows trained on in all */
    long skipped;
    int n_files; /* state of trainee i is in files[i]; names in OUT/state, owned */
    char **files;
};
/* Reads it; another configuration's unfinished state is an error, a finished one's is ignored. */
int train_state_load(struct train_state *s, const struct run_config *c, struct error *err);
int train_state_write(const struct train_state *s, const struct run_config *c, struct error *err); /* also removes files it does not name */
char *train_state_path(const struct run_config *c, const char *name);
void train_state_free(struct train_state *s);

/* evaluate_fvu.c: FVU, L0 and dead features of every dictionary in OUT/sae and of the base ones on the validation samples -> rows of
 * `layers`, in one transaction. */
int evaluate_fvu(const struct run_config *c, const struct train_plan *p, struct device *dev, sqlite3 *db, struct error *err);

/* The firing of a trained dictionary: sparsity.safetensors beside it (SAELens' `sparsity`, and rows_since_fired (M) I64). */
int firing_save(struct sae_trainer *t, const char *dir, struct error *err);
#endif
