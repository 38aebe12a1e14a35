/* evaluate_vqa.c - soft accuracy of an answer as the VQA challenge's evaluation computes it (Antol et al. 2015, Goyal et al. 2017;
 * GT-Vision-Lab/VQA, vqaEval). Its rules, quirks included:
 *
 *   trim        newline and tab become blanks, then Unicode blanks at both ends go
 *   normalise   only where the trimmed references differ among themselves (and where there is one alone, so that a match is fair)
 *     punctuation  ; / [ ] " { } ( ) = + \ _ - > < @ ` , ? !  Each sign goes without trace where the trimmed text has it beside a
 *                  blank, or has a comma between two digits; else it becomes a blank
 *     period       dropped unless a digit follows; the first 32 of a text alone (the original passes a flag in the place of a count)
 *     words        lower case, split at blanks; none .. ten become 0 .. 10, then a, an, the go, then contractions get their apostrophes
 *   accuracy    mean over the references of min(1, matches among the others / 3); one reference: 1 for a match, else 0 */
#include "analysis/evaluate.h"
#include "host/file.h"
#include "host/tokenizer_internal.h"
#include <ctype.h>
#include <locale.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

static const char *const numbers[][2] = {{"none", "0"}, {"zero", "0"}, {"one", "1"},   {"two", "2"},   {"three", "3"}, {"four", "4"},
                                         {"five", "5"}, {"six", "6"},  {"seven", "7"}, {"eight", "8"}, {"nine", "9"},  {"ten", "10"}};

/* Words without their apostrophe and what the rules make of them: the list of the published evaluation, its slips included
 * ("somebody'd" loses an apostrophe, "ow's'at" gains one). Keys with a capital never match a lowered word and are left out. */
static const char *const contractions[][2] = {
    {"aint", "ain't"},
    {"arent", "aren't"},
    {"cant", "can't"},
    {"couldve", "could've"},
    {"couldnt", "couldn't"},
    {"couldn'tve", "couldn't've"},
    {"couldnt've", "couldn't've"},
    {"didnt", "didn't"},
    {"doesnt", "doesn't"},
    {"dont", "don't"},
    {"hadnt", "hadn't"},
    {"hadnt've", "hadn't've"},
    {"hadn'tve", "hadn't've"},
    {"hasnt", "hasn't"},
    {"havent", "haven't"},
    {"hed", "he'd"},
    {"hed've", "he'd've"},
    {"he'dve", "he'd've"},
    {"hes", "he's"},
    {"howd", "how'd"},
    {"howll", "how'll"},
    {"hows", "how's"},
    {"isnt", "isn't"},
    {"itd", "it'd"},
    {"itd've", "it'd've"},
    {"it'dve", "it'd've"},
    {"itll", "it'll"},
    {"maam", "ma'am"},
    {"mightnt", "mightn't"},
    {"mightnt've", "mightn't've"},
    {"mightn'tve", "mightn't've"},
    {"mightve", "might've"},
    {"mustnt", "mustn't"},
    {"mustve", "must've"},
    {"neednt", "needn't"},
    {"notve", "not've"},
    {"oclock", "o'clock"},
    {"oughtnt", "oughtn't"},
    {"ow's'at", "'ow's'at"},
    {"'ows'at", "'ow's'at"},
    {"'ow'sat", "'ow's'at"},
    {"shant", "shan't"},
    {"shed've", "she'd've"},
    {"she'dve", "she'd've"},
    {"shouldve", "should've"},
    {"shouldnt", "shouldn't"},
    {"shouldnt've", "shouldn't've"},
    {"shouldn'tve", "shouldn't've"},
    {"somebody'd", "somebodyd"},
    {"somebodyd've", "somebody'd've"},
    {"somebody'dve", "somebody'd've"},
    {"somebodyll", "somebody'll"},
    {"somebodys", "somebody's"},
    {"someoned", "someone'd"},
    {"someoned've", "someone'd've"},
    {"someone'dve", "someone'd've"},
    {"someonell", "someone'll"},
    {"someones", "someone's"},
    {"somethingd", "something'd"},
    {"somethingd've", "something'd've"},
    {"something'dve", "something'd've"},
    {"somethingll", "something'll"},
    {"thats", "that's"},
    {"thered", "there'd"},
    {"thered've", "there'd've"},
    {"there'dve", "there'd've"},
    {"therere", "there're"},
    {"theres", "there's"},
    {"theyd", "they'd"},
    {"theyd've", "they'd've"},
    {"they'dve", "they'd've"},
    {"theyll", "they'll"},
    {"theyre", "they're"},
    {"theyve", "they've"},
    {"twas", "'twas"},
    {"wasnt", "wasn't"},
    {"wed've", "we'd've"},
    {"we'dve", "we'd've"},
    {"weve", "we've"},
    {"werent", "weren't"},
    {"whatll", "what'll"},
    {"whatre", "what're"},
    {"whats", "what's"},
    {"whatve", "what've"},
    {"whens", "when's"},
    {"whered", "where'd"},
    {"wheres", "where's"},
    {"whereve", "where've"},
    {"whod", "who'd"},
    {"whod've", "who'd've"},
    {"who'dve", "who'd've"},
    {"wholl", "who'll"},
    {"whos", "who's"},
    {"whove", "who've"},
    {"whyll", "why'll"},
    {"whyre", "why're"},
    {"whys", "why's"},
    {"wont", "won't"},
    {"wouldve", "would've"},
    {"wouldnt", "wouldn't"},
    {"wouldnt've", "wouldn't've"},
    {"wouldn'tve", "wouldn't've"},
    {"yall", "y'all"},
    {"yall'll", "y'all'll"},
    {"y'allll", "y'all'll"},
    {"yall'd've", "y'all'd've"},
    {"y'alld've", "y'all'd've"},
    {"y'all'dve", "y'all'd've"},
    {"youd", "you'd"},
    {"youd've", "you'd've"},
    {"you'dve", "you'd've"},
    {"youll", "you'll"},
    {"youre", "you're"},
    {"youve", "you've"},
};

/* Bytes of the blank (Python's str.isspace) at p, 0: none. */
static int blank_at(const char *p) {
    unsigned c;
    int bytes = (int)utf8_get(p, 4, &c);
    bool blank = (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
                 c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
    return c && blank ? bytes : 0;
}

static int point_bytes(const char *p) {
    unsigned c;
    return (int)utf8_get(p, 4, &c);
}

static char *trimmed(const char *text) {
    int bytes;
    while ((bytes = blank_at(text))) text += bytes;
    const char *end = text;
    for (const char *p = text; *p; p += bytes) {
        if ((bytes = blank_at(p))) continue;
        bytes = point_bytes(p);
        end = p + bytes;
    }
    size_t n = (size_t)(end - text);
    char *out = memory_take(n + 1, 1);
    for (size_t i = 0; i < n; i++) out[i] = text[i] == '\n' || text[i] == '\t' ? ' ' : text[i];
    return out;
}

static bool comma_between_digits(const char *text) {
    for (const char *p = strchr(text, ','); p; p = strchr(p + 1, ','))
        if (p > text && isdigit((unsigned char)p[-1]) && isdigit((unsigned char)p[1])) return true;
    return false;
}

static bool beside_blank(const char *text, char sign) {
    for (const char *p = strchr(text, sign); p; p = strchr(p + 1, sign))
        if (p[1] == ' ' || (p > text && p[-1] == ' ')) return true;
    return false;
}

/* In place. */
static void strip_punctuation(char *text) {
    static const char signs[] = ";/[]\"{}()=+\\_-><@`,?!";
    char *dropped = memory_take(sizeof signs, 1), *to = text; /* dropped[i]: sign i goes without trace */
    int periods = 0;
    const bool comma = comma_between_digits(text);
    for (size_t i = 0; i + 1 < sizeof signs; i++) dropped[i] = comma || beside_blank(text, signs[i]);
    for (const char *p = text; *p; p++) {
        const char *sign = strchr(signs, *p);
        if (!sign)
            *to++ = *p;
        else if (!dropped[sign - signs])
            *to++ = ' ';
    }
    *to = 0;
    for (const char *p = to = text; *p; p++)
        if (*p != '.' || isdigit((unsigned char)p[1]) || periods++ >= 32) *to++ = *p;
    *to = 0;
    free(dropped);
}

static locale_t unicode_locale;
static void open_locale(void) { unicode_locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0); } /* built into glibc 2.35 */

/* Lower case as Python's str.lower, but for the final sigma of Greek; malloced. */
static char *lowered(const char *text) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char *out = memory_take(2 * strlen(text) + 1, 1), *to = out; /* a point grows to three bytes from two at most */
    pthread_once(&once, open_locale);
    for (const char *p = text; *p;) {
        unsigned c, dotted = 0x130; /* I with a dot becomes i and the dot */
        p += utf8_get(p, 4, &c);
        to += utf8_put(to, c == dotted      ? 'i'
                           : unicode_locale ? (unsigned)towlower_l((wint_t)c, unicode_locale)
                                            : (unsigned)tolower((int)c));
        if (c == dotted) to += utf8_put(to, 0x307);
    }
    return out;
}

static const char *looked_up(const char *word, const char *const (*table)[2], size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(word, table[i][0])) return table[i][1];
    return word;
}

#define LOOKED_UP(word, table) looked_up(word, table, sizeof(table) / sizeof *(table))

char *vqa_normalise(const char *text) {
    char *plain = trimmed(text);
    strip_punctuation(plain);
    char *words = lowered(plain), *out = memory_take(2 * strlen(words) + 1, 1), *to = out; /* a contraction gains a byte */
    free(plain);
    for (char *p = words, *end; *p; p = end) {
        int bytes;
        while ((bytes = blank_at(p))) p += bytes;
        for (end = p; *end && !blank_at(end);) end += point_bytes(end);
        if (end == p) break;
        bytes = *end ? blank_at(end) : 0;
        *end = 0;
        const char *word = LOOKED_UP(p, numbers);
        end += bytes;
        if (!strcmp(word, "a") || !strcmp(word, "an") || !strcmp(word, "the")) continue;
        word = LOOKED_UP(word, contractions);
        if (to > out) *to++ = ' ';
        memcpy(to, word, strlen(word));
        to += strlen(word);
    }
    free(words);
    return out;
}

double vqa_accuracy(const char *answer, const char *const *references, int n) {
    char **reference = memory_take((size_t)n + 1, sizeof *reference), *given = trimmed(answer);
    bool differ = n == 1;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        reference[i] = trimmed(references[i]);
        differ = differ || strcmp(reference[i], reference[0]) != 0;
    }
    for (int i = 0; i <= n && differ; i++) {
        char **one = i < n ? &reference[i] : &given, *normal = vqa_normalise(*one);
        free(*one);
        *one = normal;
    }
    int matches = 0;
    for (int i = 0; i < n; i++) matches += !strcmp(reference[i], given);
    for (int i = 0; i < n; i++) {
        int others = matches - !strcmp(reference[i], given);
        sum += n == 1 ? matches : others >= 3 ? 1 : (double)others / 3;
    }
    for (int i = 0; i < n; i++) free(reference[i]);
    free(reference);
    free(given);
    return n > 0 ? sum / n : 0;
}
