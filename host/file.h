/* file.h - whole files in, atomic files out. */
#ifndef HOST_FILE_H
#define HOST_FILE_H
#include "host/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Reads a file of at most max_bytes; *data is malloced (caller frees), NUL appended after *size bytes. */
int file_read(const char *path, size_t max_bytes, char **data, size_t *size, struct error *err);
bool file_exists(const char *path);
bool dir_exists(const char *path);
/* mkdir of one folder whose parent must exist; an existing folder is fine. */
int dir_create(const char *path, struct error *err);

/* An output file that appears whole or not at all: written to PATH.tmp.<pid>, flushed, fsynced, renamed by commit.
 * abort (or commit's failure) removes the temporary file. Full disk is an error of commit at the latest. */
struct file_writer {
    char *path, *temporary;
    FILE *stream;
};
int file_writer_open(struct file_writer *w, const char *path, struct error *err);
int file_writer_commit(struct file_writer *w, struct error *err);
void file_writer_abort(struct file_writer *w);

/* Joins folder and name with one slash (name absolute: name alone); malloced. folder NULL or "": name. */
char *path_join(const char *folder, const char *name);
char *path_folder(const char *path); /* everything before the last slash, "." when there is none; malloced */
#endif
