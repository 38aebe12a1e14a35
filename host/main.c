/* main.c - finds the command, parses its options, turns what it returns into the exit status of docs/cli.md:
 * 0 done, 1 our own failure, 2 the world is at fault, 128 + n after signal n. */
#include "host/error.h"
#include "host/file.h"
#include "host/options.h"
#include "host/threads.h"
#include "host/version.h"
#include <errno.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION STAGEDIFF_VERSION
#ifdef STAGEDIFF_BF16
#define STORAGE "bf16"
#else
#define STORAGE "f32"
#endif

/* How the list of commands is grouped; a command named nowhere here is listed last. */
static const struct group {
    const char *title;
    const char *names[12];
} groups[] = {
    {"Look at what is there", {"info", "tokenize", "detokenize", "preprocess"}},
    {"Run a model or a dictionary", {"generate", "harvest", "encode", "convert"}},
    {"The pipeline, stage by stage",
     {"train", "diff", "select", "attribute", "evaluate", "vectors", "intervene", "steer", "concepts", "align", "report"}},
    {"All stages", {"run"}},
};
enum { N_GROUPS = sizeof groups / sizeof *groups };

static struct command *find_command(const char *name) {
    for (int i = 0; commands[i]; i++)
        if (!strcmp(commands[i]->name, name)) return commands[i];
    return NULL;
}

static int in_a_group(const char *name) {
    for (int g = 0; g < N_GROUPS; g++)
        for (int i = 0; groups[g].names[i]; i++)
            if (!strcmp(groups[g].names[i], name)) return 1;
    return 0;
}

static void print_commands(void) {
    puts("stagediff: what multimodal training did to a language model, feature by feature.\n\nUsage: stagediff COMMAND [options]");
    for (int g = 0; g < N_GROUPS; g++) {
        int titled = 0;
        for (int i = 0; groups[g].names[i]; i++) {
            const struct command *c = find_command(groups[g].names[i]);
            if (!c) continue;
            if (!titled++) printf("\n%s:\n", groups[g].title);
            printf("  %-12s %s\n", c->name, c->summary);
        }
    }
    int titled = 0;
    for (int i = 0; commands[i]; i++)
        if (!in_a_group(commands[i]->name)) {
            if (!titled++) puts("\nMore:");
            printf("  %-12s %s\n", commands[i]->name, commands[i]->summary);
        }
    puts("\nstagediff COMMAND --help explains a command with examples; stagediff --version tells the version.");
}

static int unknown_command(const char *word) {
    const char *names[64];
    size_t n = 0;
    for (; n < 60 && commands[n]; n++) names[n] = commands[n]->name;
    names[n] = NULL;
    const char *near = nearest_name(word, names);
    if (near)
        fprintf(stderr, "stagediff: unknown command %s; did you mean %s? (stagediff --help lists all)\n", word, near);
    else
        fprintf(stderr, "stagediff: unknown command %s; stagediff --help lists all\n", word);
    return 2;
}

/* Results that never reached their reader are an error: a full disk or a closed pipe behind stdout. */
static int finish(int status) {
    int why = 0;
    if (ferror(stdout)) why = EIO;
    errno = 0;
    if (fclose(stdout) && !why) why = errno ? errno : EIO;
    if (why && (status == 0 || status == 2)) {
        if (!status) fprintf(stderr, "stagediff: stdout: the results cannot be written: %s\n", strerror(why));
        status = 2;
    }
    file_remove_temporaries();
    return status;
}

/* CHECK aborts on a bug of ours: status 1. A mapped file that another process cuts short raises SIGBUS: the world's fault. */
static void on_fatal(int number) {
    static const char shrunk[] = "stagediff: an input file became shorter while it was being read; start again when it is complete\n";
    if (number == SIGBUS && write(STDERR_FILENO, shrunk, sizeof shrunk - 1) < 0) _exit(2);
    file_remove_temporaries();
    _exit(number == SIGABRT ? 1 : number == SIGBUS ? 2 : 128 + number);
}

static void install_handlers(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, on_fatal);
    signal(SIGTERM, on_fatal);
    signal(SIGABRT, on_fatal);
    signal(SIGBUS, on_fatal);
    if (signal(SIGHUP, on_fatal) == SIG_IGN) /* nohup */
        signal(SIGHUP, SIG_IGN);
}

int main(int argc, char **argv) {
    threads_wait_asleep(argv);
#ifdef STAGEDIFF_BF16 /* tensors lie on a device; the host's large arrays are dictionaries on their way there and back */
    memory_keep();
#endif
    install_handlers();
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_commands();
        return finish(0);
    }
    if (!strcmp(argv[1], "--version")) {
        puts("stagediff " VERSION " (activations in " STORAGE ")");
        return finish(0);
    }
    struct command *cmd = find_command(argv[1]);
    if (!cmd) return finish(unknown_command(argv[1]));
    struct error err = {.text = ""};
    int rc = options_parse(cmd, argc - 2, argv + 2, &err);
    if (rc == 1) return finish(0);
    if (rc == 0) {
        log_quiet = cmd->quiet;
        if (cmd->threads > 0) omp_set_num_threads(cmd->threads);
        rc = cmd->run(cmd, &err);
    }
    if (rc < 0) {
        fprintf(stderr, "stagediff: %s\n", *err.text ? err.text : "the command failed without saying why; this is a bug of ours");
        return finish(*err.text ? 2 : 1);
    }
    return finish(rc);
}
