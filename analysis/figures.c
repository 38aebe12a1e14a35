/* figures.c - runs gnuplot on a script and puts its SVG into the page: header and namespaces dropped (HTML needs none), ids
 * made unique by a prefix (gnuplot gives every figure the same ones), the page's font instead of its own. */
#include "analysis/report.h"
#include "host/file.h"
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_SVG_BYTES ((size_t)256 << 20)
extern char **environ;

static void figure_free(struct figure *f) {
    if (f->script) fclose(f->script);
    char **const paths[] = {&f->script_path, &f->svg_path, &f->error_path};
    for (size_t i = 0; i < 3; i++) {
        if (*paths[i]) unlink(*paths[i]);
        free(*paths[i]);
        *paths[i] = NULL;
    }
    f->script = NULL;
}

void figure_abort(struct figure *f) { figure_free(f); }

int figure_open(struct figure *f, struct report *r, int width, int height, struct error *err) {
    *f = (struct figure){0};
    snprintf(f->id, sizeof f->id, "f%d", r->figures + 1);
    f->script_path = path_join(r->scratch, "figure.gp");
    f->svg_path = path_join(r->scratch, "figure.svg");
    f->error_path = path_join(r->scratch, "figure.err");
    f->script = fopen(f->script_path, "w");
    if (!f->script) {
        fail(err, "%s: cannot write gnuplot's script: %s", f->script_path, strerror(errno));
        figure_free(f);
        return -1;
    }
    fprintf(f->script,
            "set encoding utf8\n"
            "set terminal svg size %d,%d dynamic enhanced font 'sans,14' rounded linewidth 1 background rgb 'white'\n"
            "set border 3 lc rgb '#8a8f98' lw 1\n"
            "set tics nomirror out scale 0.6 textcolor rgb '#3d434b'\n"
            "set grid ytics lc rgb '#e6e8eb' lw 1 lt 1\n"
            "set key at graph 0,1.03 left bottom horizontal Left reverse samplen 1.6 width 1 spacing 1.1 textcolor rgb '#22262b'\n"
            "set lmargin 9\nset rmargin 3\nset tmargin 3\nset bmargin 4\n",
            width, height);
    return 0;
}

static int run_gnuplot(const struct figure *f, struct error *err) {
    char *const argv[] = {"gnuplot", "-d", f->script_path, NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status = 0;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, f->svg_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, f->error_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int failed = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed == 0)
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    if (failed || (WIFEXITED(status) && WEXITSTATUS(status) == 127))
        return fail(
            err,
            "gnuplot cannot be started (%s); it draws the report's figures: install the package gnuplot-nox (apt-get install gnuplot-nox)",
            failed ? strerror(failed) : "not found");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
    char *text = NULL;
    size_t bytes = 0;
    struct error ignored;
    int read = file_read(f->error_path, 1 << 20, &text, &bytes, &ignored);
    fail(err, "gnuplot failed on a figure of the report (status %d): %.600s", status, read == 0 ? text : "");
    free(text);
    return -1;
}

/* What is replaced while the SVG is copied; %s is the figure's id. */
static const struct {
    const char *from, *to;
} rewrites[] = {
    {" xmlns=\"http://www.w3.org/2000/svg\"", ""},
    {" xmlns:xlink=\"http://www.w3.org/1999/xlink\"", ""},
    {"xlink:href='#", "href='#%s-"},
    {" id='", " id='%s-"},
    {" id=\"", " id=\"%s-"},
    {"url(#", "url(#%s-"},
    {"font-family=\"sans\"", "font-family=\"inherit\""},
};

static void copy_svg(FILE *out, const char *svg, const char *id) {
    for (const char *at = svg; *at;) {
        size_t rule = 0, n = sizeof rewrites / sizeof *rewrites;
        while (rule < n && strncmp(at, rewrites[rule].from, strlen(rewrites[rule].from)) != 0) rule++;
        if (rule == n) {
            size_t plain = 1 + strcspn(at + 1, " xuf"); /* every rule starts with one of these */
            fwrite(at, 1, plain, out);
            at += plain;
            continue;
        }
        for (const char *to = rewrites[rule].to; *to; to++)
            if (to[0] == '%' && to[1] == 's') {
                fputs(id, out);
                to++;
            } else {
                fputc(*to, out);
            }
        at += strlen(rewrites[rule].from);
    }
}

int figure_close(struct figure *f, struct report *r, const char *description, struct error *err) {
    char *svg = NULL;
    size_t bytes = 0;
    int status = -1;
    bool written = !ferror(f->script);
    written = fclose(f->script) == 0 && written;
    f->script = NULL;
    if (!written) {
        fail(err, "%s: cannot write gnuplot's script: %s", f->script_path, strerror(errno));
        goto cleanup;
    }
    if (run_gnuplot(f, err) || file_read(f->svg_path, MAX_SVG_BYTES, &svg, &bytes, err)) goto cleanup;
    const char *start = strstr(svg, "<svg");
    if (!start) {
        fail(err, "gnuplot drew no SVG for figure %d of the report; is this gnuplot built with the svg terminal?", r->figures + 1);
        goto cleanup;
    }
    const char *maker = strstr(svg, "GNUPLOT ");
    if (maker) snprintf(r->gnuplot, sizeof r->gnuplot, "%.*s", (int)strcspn(maker + 8, "<\n"), maker + 8);
    for (size_t n = strlen(r->gnuplot); n > 0 && r->gnuplot[n - 1] == ' ';) r->gnuplot[--n] = '\0';
    fputs("<svg role=\"img\" aria-label=\"", r->out);
    html_text(r->out, description);
    fputc('"', r->out);
    copy_svg(r->out, start + 4, f->id);
    status = 0;
cleanup:
    free(svg);
    figure_free(f);
    return status;
}
