/* world.h - sizes of the small world (tools/tinyworld/world) that tests write into files and arrays. */
#ifndef TESTS_WORLD_H
#define TESTS_WORLD_H
enum { WORLD_LAYERS = 8, WORLD_WIDTH = 160, WORLD_HEADS = 10 };
#endif
