/* file.c - whole files in, atomic files out, names joined. */
#include "host/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void out_of_memory(size_t count, size_t bytes) {
    fprintf(stderr, "stagediff: out of memory: %zu x %zu bytes could not be had; use smaller batches or a larger machine\n", count, bytes);
    file_remove_temporaries();
    _exit(2);
}

void *memory_take(size_t count, size_t bytes) {
    void *p = calloc(count ? count : 1, bytes ? bytes : 1);
    if (!p) out_of_memory(count, bytes);
    return p;
}

void *memory_grow(void *old, size_t count, size_t bytes) {
    void *p = bytes && count > SIZE_MAX / bytes ? NULL : realloc(old, count && bytes ? count * bytes : 1);
    if (!p) out_of_memory(count, bytes);
    return p;
}

char *memory_string(const char *text) {
    size_t n = strlen(text) + 1;
    return memcpy(memory_take(n, 1), text, n);
}

void memory_keep(void) {
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, -1); /* never */
    mallopt(M_TOP_PAD, 64 << 20);
}

/* ---- reading ---- */
int file_read(const char *path, size_t max_bytes, char **data, size_t *size, struct error *err) {
    *data = NULL;
    int rc = -1, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail(err, "%s: cannot be opened: %s", path, strerror(errno));
    struct stat st;
    char *buffer = NULL;
    size_t used = 0;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        fail(err, "%s: not a regular file", path);
        goto cleanup;
    }
    size_t bytes = (size_t)st.st_size;
    if (st.st_size < 0 || bytes > max_bytes) {
        fail(err, "%s: %zu bytes, more than the %zu that such a file may have", path, bytes, max_bytes);
        goto cleanup;
    }
    buffer = malloc(bytes + 1);
    if (!buffer) {
        fail(err, "%s: no memory for its %zu bytes", path, bytes);
        goto cleanup;
    }
    while (used < bytes) {
        ssize_t n = read(fd, buffer + used, bytes - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            fail(err, "%s: cannot be read: %s", path, strerror(errno));
            goto cleanup;
        }
        if (!n) break;
        used += (size_t)n;
    }
    buffer[used] = 0;
    *data = buffer;
    *size = used;
    buffer = NULL;
    rc = 0;
cleanup:
    free(buffer);
    close(fd);
    return rc;
}

bool file_exists(const char *path) {
    struct stat st;
    return !stat(path, &st) && S_ISREG(st.st_mode);
}

bool dir_exists(const char *path) {
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

int dir_create(const char *path, struct error *err) {
    if (!mkdir(path, 0777)) return 0;
    int why = errno;
    if (why == EEXIST && dir_exists(path)) return 0;
    if (why == EEXIST) return fail(err, "%s: a file of this name is in the way of the folder", path);
    if (why == ENOENT) return fail(err, "%s: the folder cannot be made, its parent does not exist", path);
    return fail(err, "%s: the folder cannot be made: %s", path, strerror(why));
}

/* ---- writing ----
 * Names of open temporaries, so that an exit on any path can remove them. A slot is claimed before the file is made. */
enum { MAX_OPEN = 64 };
static char *volatile open_temporaries[MAX_OPEN];

void file_remove_temporaries(void) {
    for (int i = 0; i < MAX_OPEN; i++)
        if (open_temporaries[i]) unlink(open_temporaries[i]);
}

static void remember(char *temporary) {
    for (int i = 0; i < MAX_OPEN; i++)
        if (!open_temporaries[i]) {
            open_temporaries[i] = temporary;
            return;
        }
}

static void forget(const char *temporary) {
    for (int i = 0; i < MAX_OPEN; i++)
        if (open_temporaries[i] == temporary) open_temporaries[i] = NULL;
}

/* Where the file really goes: the target of a symbolic link is replaced, not the link. Malloced. */
static char *final_path(const char *path) {
    struct stat st;
    char *real = !lstat(path, &st) && S_ISLNK(st.st_mode) ? realpath(path, NULL) : NULL;
    return real ? real : memory_string(path);
}

static int open_failed(struct file_writer *w, const char *path, int why, struct error *err) {
    char *folder = path_folder(path);
    if (why == ENOENT || why == ENOTDIR)
        fail(err, "%s: cannot be written, the folder %s does not exist", path, folder);
    else
        fail(err, "%s: cannot be written: %s", path, strerror(why));
    free(folder);
    file_writer_abort(w);
    return -1;
}

int file_writer_open(struct file_writer *w, const char *path, struct error *err) {
    *w = (struct file_writer){0};
    if (!*path) return fail(err, "the name of the output file is empty");
    if (dir_exists(path)) return fail(err, "%s: is a folder, the output needs the name of a file", path);
    struct stat st;
    w->path = final_path(path);
    if (!stat(path, &st) && !S_ISREG(st.st_mode)) { /* a device or pipe (/dev/stdout): written as it is, never replaced */
        w->stream = fopen(path, "wbe");
        return w->stream ? 0 : open_failed(w, path, errno, err);
    }
    size_t n = strlen(w->path) + 32;
    w->temporary = memory_take(n, 1);
    snprintf(w->temporary, n, "%s.tmp.%ld", w->path, (long)getpid());
    remember(w->temporary);
    w->stream = fopen(w->temporary, "wbe");
    return w->stream ? 0 : open_failed(w, path, errno, err);
}

int file_writer_commit(struct file_writer *w, struct error *err) {
    int rc = -1, why = 0;
    bool failed = ferror(w->stream) != 0;
    errno = 0;
    if (fflush(w->stream) || failed)
        why = errno ? errno : ENOSPC;
    else if (w->temporary && fsync(fileno(w->stream)) && errno != EINVAL && errno != EROFS)
        why = errno;
    if (fclose(w->stream) && !why) why = errno;
    w->stream = NULL;
    if (why)
        fail(err, "%s: cannot be written in full: %s", w->path, strerror(why));
    else if (w->temporary && rename(w->temporary, w->path))
        fail(err, "%s: the finished file cannot be put in place: %s", w->path, strerror(errno));
    else
        rc = 0;
    if (!rc && w->temporary) {
        forget(w->temporary);
        free(w->temporary);
        w->temporary = NULL;
    }
    file_writer_abort(w);
    return rc;
}

void file_writer_abort(struct file_writer *w) {
    if (w->stream) fclose(w->stream);
    if (w->temporary) {
        unlink(w->temporary);
        forget(w->temporary);
    }
    free(w->temporary);
    free(w->path);
    *w = (struct file_writer){0};
}

/* ---- names ---- */
char *path_join(const char *folder, const char *name) {
    if (!folder || !*folder || *name == '/') return memory_string(name);
    size_t a = strlen(folder), b = strlen(name);
    char *joined = memory_take(a + b + 2, 1);
    memcpy(joined, folder, a);
    if (joined[a - 1] != '/') joined[a++] = '/';
    memcpy(joined + a, name, b + 1);
    return joined;
}

char *path_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return memory_string(".");
    size_t n = slash == path ? 1 : (size_t)(slash - path);
    char *folder = memory_take(n + 1, 1);
    memcpy(folder, path, n);
    return folder;
}
