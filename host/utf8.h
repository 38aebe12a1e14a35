/* utf8.h - well-formed UTF-8: no overlong forms, no surrogates, up to U+10FFFF. */
#ifndef HOST_UTF8_H
#define HOST_UTF8_H
#include <stddef.h>
size_t utf8_valid(const char *text, size_t bytes);                     /* bytes of the longest valid beginning */
int utf8_put(char out[4], unsigned code_point);                        /* bytes written */
size_t utf8_get(const char *text, size_t bytes, unsigned *code_point); /* bytes read of valid text */
char *utf8_repair(const char *text,
                  size_t *bytes); /* malloced, *bytes becomes its length; every maximal ill-formed part becomes one U+FFFD */
#endif
