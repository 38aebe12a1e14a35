/* test_samples_published.c - files of VQAv2, COCO captions and VSR as they are published, and damaged ones. */
#include "host/file.h"
#include "host/samples.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define DIR "build/test-samples-published"

static void put(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, DIR "/%s", name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

#define QUESTIONS                                                                                                                          \
    "{\"info\": {\"a\": [1, {\"b\": \"]}\\\"\"}]}, \"task_type\": \"Open-Ended\", \"data_type\": \"mscoco\", \"license\": {}, "            \
    "\"data_subtype\": \"val2014\", \"questions\": [{\"image_id\": 262148, \"question\": \"Where is he looking?\", \"question_id\": "      \
    "262148000}, {\"image_id\": 42, \"question\": \"What {is}, [this]?\", \"question_id\": 42001},\n"                                      \
    "{\"image_id\": 42, \"question\": \"Is it?\", \"question_id\": 42002}]}"
#define ANNOTATIONS                                                                                                                        \
    "{\"info\": {}, \"annotations\": [{\"question_type\": \"what is\", \"multiple_choice_answer\": \"net\", \"answers\": [{\"answer\": "   \
    "\"net\", \"answer_confidence\": \"maybe\", \"answer_id\": 1}, {\"answer\": \"nets\", \"answer_confidence\": \"yes\", \"answer_id\": " \
    "2}], \"image_id\": 42, \"answer_type\": \"other\", \"question_id\": 42001}, {\"question_type\": \"none of the above\", "              \
    "\"multiple_choice_answer\": \"down\", \"answers\": [{\"answer\": \"down\", \"answer_id\": 1}], \"image_id\": 262148, "                \
    "\"answer_type\": \"other\", \"question_id\": 262148000}, {\"answers\": [], \"question_id\": 7}], \"data_subtype\": \"val2014\"}"

static void open_it(struct samples *s, const char *data, const char *annotations, const char *images) {
    struct error err = {""};
    if (samples_open_published(s, data, annotations, images, &err)) fail_msg("%s", err.text);
}

static void vqa(void **state) {
    struct samples s;
    (void)state;
    put("q.json", QUESTIONS);
    put("a.json", ANNOTATIONS);
    put("COCO_val2014_000000000042.jpg", "");
    put("val2014/COCO_val2014_000000262148.jpg", "");
    open_it(&s, DIR "/q.json", DIR "/a.json", DIR);
    assert_int_equal(s.count, 3);
    assert_string_equal(s.at[0].id, "262148000");
    assert_string_equal(s.at[0].image, DIR "/val2014/COCO_val2014_000000262148.jpg"); /* where the archive unpacks it */
    assert_string_equal(s.at[1].image, DIR "/COCO_val2014_000000000042.jpg");
    assert_string_equal(s.at[1].question, "What {is}, [this]?");
    const json_t *answers = json_object_get(s.at[1].json, "answers");
    assert_int_equal(json_array_size(answers), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(answers, 1), "answer")), "nets");
    assert_string_equal(json_string_value(json_object_get(s.at[0].json, "answer_type")), "other");
    assert_null(json_object_get(s.at[2].json, "answers")); /* no annotation */
    assert_int_equal(s.at[2].label, -1);
    samples_free(&s);
    open_it(&s, DIR "/q.json", NULL, NULL);
    assert_string_equal(s.at[1].image, DIR "/COCO_val2014_000000000042.jpg"); /* beside the questions */
    samples_free(&s);
}

static void captions(void **state) {
    struct samples s;
    (void)state;
    put("c.json",
        "{\"info\": {}, \"images\": [{\"license\": 5, \"file_name\": \"COCO_val2014_000000000042.jpg\", \"id\": 42}, {\"file_name\": "
        "\"x.jpg\", \"id\": 7}], \"licenses\": [], \"annotations\": [{\"image_id\": 7, \"id\": 1, \"caption\": \"a\"}, {\"image_id\": "
        "42, \"id\": 2, \"caption\": \"b\"}, {\"image_id\": 7, \"id\": 3, \"caption\": \"c\"}]}");
    open_it(&s, DIR "/c.json", NULL, "build");
    assert_int_equal(s.count, 2);
    assert_string_equal(s.at[1].image, "build/x.jpg");
    assert_string_equal(s.at[1].id, "7");
    assert_int_equal(json_array_size(json_object_get(s.at[1].json, "captions")), 2);
    assert_null(s.at[0].answer); /* nothing that VQA's rules could score */
    assert_non_null(s.at[0].question);
    samples_free(&s);
}

static void vsr(void **state) {
    struct samples s;
    (void)state;
    put("v.jsonl",
        "{\"image\": \"000000050403.jpg\", \"image_link\": \"http://images.cocodataset.org/train2017/000000050403.jpg\", \"caption\": "
        "\"The teddy bear is in front of the person.\", \"label\": 1, \"relation\": \"in front of\", \"annotator_id\": 31, "
        "\"vote_true_validator_id\": [2, 6], \"vote_false_validator_id\": []}\n{\"image\": \"b.jpg\", \"image_link\": "
        "\"http://x/../b.jpg\", \"caption\": \"c\", \"label\": 0, \"relation\": \"on\"}\n");
    put("train2017/000000050403.jpg", "");
    open_it(&s, DIR "/v.jsonl", NULL, DIR);
    assert_int_equal(s.count, 2);
    assert_string_equal(s.at[0].image, DIR "/train2017/000000050403.jpg");
    assert_string_equal(s.at[1].image, DIR "/b.jpg");
    assert_string_equal(s.at[0].relation, "in front of");
    assert_int_equal(s.at[1].label, 0);
    samples_free(&s);
    open_it(&s, DIR "/v.jsonl", NULL, "build"); /* not there: named as it would be */
    assert_string_equal(s.at[0].image, "build/000000050403.jpg");
    samples_free(&s);
}

static void refused(const char *text, const char *annotations, const char *images, const char *says) {
    struct samples s;
    struct error err = {""};
    put("bad.json", text);
    if (annotations) put("bad_a.json", annotations);
    if (samples_open_published(&s, DIR "/bad.json", annotations ? DIR "/bad_a.json" : NULL, images, &err) == 0) fail_msg("taken: %s", text);
    print_message("    %s\n", err.text);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
    assert_null(strchr(err.text, '\n'));
}

static void damaged(void **state) {
    char cut[sizeof QUESTIONS];
    (void)state;
    for (size_t n = 0; n + 1 < sizeof QUESTIONS; n++) { /* cut off anywhere: an error, never a crash, never fewer questions */
        struct samples s;
        struct error err = {""};
        memcpy(cut, QUESTIONS, n);
        cut[n] = 0;
        put("cut.json", cut);
        if (n < sizeof QUESTIONS - 2) assert_int_equal(samples_open_published(&s, DIR "/cut.json", NULL, NULL, &err), -1);
    }
    refused("{\"questions\": [{}]}", NULL, NULL, "data_subtype");
    refused("{\"data_subtype\": \"../x\", \"questions\": [{}]}", NULL, NULL, "data_subtype");
    refused("{\"data_subtype\": \"a\", \"questions\": []}", NULL, NULL, "holds no entry");
    refused("{\"data_subtype\": \"a\", \"questions\": [{\"image_id\": -1, \"question_id\": 1, \"question\": \"a\"}]}", NULL, NULL,
            "entry 0");
    refused("{\"data_subtype\": \"a\", \"questions\": [{\"image_id\": 1, \"question_id\": 1, \"question\": \"a\"} 3]}", NULL, NULL,
            "after entry 0");
    refused("{\"data_subtype\": \"a\", \"questions\": {}}", NULL, NULL, "a list under the key");
    refused("{\"data_subtype\": \"a\", \"questions\": [3]}", NULL, NULL, "entry 0");
    refused(QUESTIONS, "{\"annotations\": [{\"question_id\": 1, \"answers\": []}]}", NULL, "none of the 3 questions");
    refused(QUESTIONS, "{\"annotations\": [{\"question_id\": 42001, \"answers\": 1}]}", NULL, "entry 0");
    refused(QUESTIONS, "{}", NULL, "annotations");
    refused(QUESTIONS, NULL, DIR "/nowhere", "no such folder");
    refused("{\"prompt\": \"a\"}\n", ANNOTATIONS, NULL, "go with VQAv2");
    refused("{\"images\": [{\"id\": \"x\"}], \"annotations\": []}", NULL, NULL, "entry 0");
    refused("{\"images\": [{\"id\": 1, \"file_name\": \"a\"}], \"annotations\": [{\"image_id\": 1}]}", NULL, NULL, "caption");
}

int main(void) {
    if (system("rm -rf " DIR " && mkdir -p " DIR "/val2014 " DIR "/train2017")) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vqa),
        cmocka_unit_test(captions),
        cmocka_unit_test(vsr),
        cmocka_unit_test(damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
