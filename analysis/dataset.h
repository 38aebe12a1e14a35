/* dataset.h - lines of a data file that a stage wants, ready to be asked. */
#ifndef ANALYSIS_DATASET_H
#define ANALYSIS_DATASET_H
#include "host/error.h"
#include <jansson.h>
struct samples;
struct dataset {       /* owned; NULL: not given */
    char *data;        /* JSONL as docs/cli.md has it, VSR's files, VQAv2's questions, COCO's captions */
    char *images;      /* folder of the pictures; NULL: the data file's */
    char *annotations; /* VQAv2's answers */
    json_t *where;     /* object: only lines that have these values */
    char *keywords;    /* file of words and phrases: only lines whose question (or caption) has one of them */
    long samples;      /* at most so many of those left; 0: all */
    char *ask;         /* the question put instead of the line's: {question} and {caption} stand for the line's */
};
/* Reads and filters; no line left is an error. */
int dataset_open(const struct dataset *d, struct samples *s, struct error *err);

/* A file of words and phrases, one a line; blank lines and those that begin with # are skipped. *list malloced, as its strings. */
int phrases_open(char ***list, int *n, const char *path, struct error *err);
void phrases_free(char **list, int n);
/* Does text have one of the phrases as whole words, in any case, its words joined by blanks or a hyphen? (papers.md 1.4) */
int phrases_match(char *const *list, int n, const char *text);
#endif
