/* file.h - whole files in, atomic files out. */
#ifndef HOST_FILE_H
#define HOST_FILE_H
#include "host/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* malloc, realloc and strdup that never return NULL: without memory they say so and end the program with status 2 (after
 * file_remove_temporaries). For sizes that our own data bounds; sizes taken from a file are checked against the file first. */
void *memory_take(size_t count, size_t bytes); /* zeroed */
void *memory_grow(void *old, size_t count, size_t bytes);
char *memory_string(const char *text);
/* For the executors with a device: from now on freed memory stays with the process. By default glibc gives arrays above 32 MB back to the
 * system at once and takes new pages, cleared by the kernel, for the next one: most of the time of loading a real dictionary (1 GB
 * of arrays, bench/LOG.md). */
void memory_keep(void);

/* Reads a file of at most max_bytes; *data is malloced (caller frees), NUL appended after *size bytes. */
int file_read(const char *path, size_t max_bytes, char **data, size_t *size, struct error *err);
bool file_exists(const char *path);
bool dir_exists(const char *path);
/* mkdir of one folder whose parent must exist; an existing folder is fine. */
int dir_create(const char *path, struct error *err);

/* An output file that appears whole or not at all: written to PATH.tmp.<pid>, flushed, fsynced, renamed by commit.
 * abort (or commit's failure) removes the temporary file. Full disk is an error of commit at the latest. A device or pipe
 * is written directly. */
struct file_writer {
    char *path, *temporary; /* temporary: NULL for a device */
    FILE *stream;
};
int file_writer_open(struct file_writer *w, const char *path, struct error *err);
int file_writer_commit(struct file_writer *w, struct error *err);
void file_writer_abort(struct file_writer *w); /* also fine after commit and on a zeroed struct */
/* Removes the temporary files of all writers still open; async-signal-safe, for handlers and exits. */
void file_remove_temporaries(void);

/* Joins folder and name with one slash (name absolute: name alone); malloced. folder NULL or "": name. */
char *path_join(const char *folder, const char *name);
char *path_folder(const char *path); /* everything before the last slash, "." when there is none; malloced */
#endif
