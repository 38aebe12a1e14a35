/* train_job.h - inside stage_train: what is trained, where the run stands, what it needs. */
#ifndef ANALYSIS_TRAIN_JOB_H
#define ANALYSIS_TRAIN_JOB_H
#include "analysis/ring.h"
#include "analysis/run.h"
#include "host/progress.h"
#include "host/samples.h"
#include "models/checkpoint.h"
#include "models/model.h"
#include "sae/trainer.h"

/* evaluate_fvu: samples of a forward pass, which are the batches of fvu_as_coded (papers.md 1.2); rows that are encoded at once. */
enum { EVALUATION_SAMPLES = 8, EVALUATION_CHUNK = 1024, EVALUATION_ACTIVE = 128 };
int evaluation_slots(const struct run_config *c); /* codes a row that EVALUATION_CHUNK rows have room for; more codes, fewer rows */

/* Bytes on the device (train_memory.c), by the sizes that the loaders, the trainer and the evaluation themselves take. */
struct train_memory {
    struct checkpoint_pass pass; /* the largest forward pass */
    int rows;                    /* that it adds to the block of a layer */
    size_t weights, activations;
    size_t step, evaluation;              /* scratch: of a training step with its batch and index lists; of an evaluation step */
    size_t dictionaries, optimizer, ring; /* of the layer that needs most: its regimes' dictionaries, their Adam, its block of rows */
    size_t evaluated;                     /* of that layer too: its dictionaries and the base's while they are evaluated */
    size_t free, needed;                  /* needed: with layers_at_once layers */
    size_t saving;                        /* host: a copy of one dictionary's state while it is written */
    size_t host; /* what the process has beside `needed`: itself, its libraries, saving; 0 where the device's memory is not the host's */
    size_t disk_dictionaries, disk_state; /* OUT/sae, OUT/state */
};
size_t train_memory_needed(const struct train_memory *m, int layers); /* with so many layers at once: the larger of both phases */

/* What the configuration, the model's and the dictionaries' headers say before anything is loaded (train_plan.c). */
struct train_plan {
    int n_layers, *layers; /* owned */
    int model_layers;      /* of the whole model */
    int d, k, layers_at_once, n_groups;
    int *base_features;   /* (n_layers), M of the base dictionary, 0 without; owned */
    int *random_features; /* (n_layers); owned */
    int largest;          /* M of the largest dictionary that is trained */
    bool has_tower;
    size_t first, count; /* training samples */
    long total;          /* samples to stream: count x passes */
    struct train_settings settings;
    struct train_memory memory;
};
/* s, first, count: the training samples (run_samples). Refuses what cannot fit, saying what would. at_once > 0: use that many layers (a
 * resumed run's), else what the configuration or the free memory says. */
int train_plan_open(struct train_plan *p, const struct run_config *c, struct device *dev, const struct samples *s, size_t first,
                    size_t count, int at_once, struct error *err);
void train_plan_log(const struct train_plan *p, const struct run_config *c, const struct device *dev); /* log_note */
int train_plan_features(const struct train_plan *p, enum regime r, int slot);                          /* M; slot: index into layers */
void train_plan_free(struct train_plan *p);
const char *bytes_text(char out[32], size_t bytes); /* "219 MB" */
/* train_memory.c: fills p->memory, layers_at_once and n_groups; p's other fields are set. */
int train_memory_place(struct train_plan *p, const struct run_config *c, const struct checkpoint *model, struct device *dev,
                       const struct samples *s, int at_once, struct error *err);

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
