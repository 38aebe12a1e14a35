/* command.c - what the commands that run a model share (command.h). */
#include "models/command.h"
#include <string.h>

int command_open(struct model *m, const struct command *self, struct error *err) {
    char why[256];
    const struct model_options o = {.vision_tower = option(self, "--vision-tower")->text,
                                    .base = option(self, "--base")->text,
                                    .template = option(self, "--template")->text};
    struct device *dev = device_open(0, self->threads, why, sizeof why);
    memset(m, 0, sizeof *m);
    if (!dev) return fail(err, "%s", why);
    if (model_open(m, dev, option(self, "--model")->text, &o, err)) {
        device_close(dev);
        return -1;
    }
    return 0;
}

void command_close(struct model *m) {
    struct device *dev = m->dev;
    model_close(m);
    device_close(dev);
}
