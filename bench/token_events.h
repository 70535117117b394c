// What each API says: events with a stamp of fixed length, as HTTP chunks that are built once.
// The chat stream is vLLM 0.32's: the role with the first token, the finish reason with the last, then the usage.
#pragma once
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "histogram.h"

#define STAMP_DIGITS 19  // ns since 1970 have 19 digits until the year 2286
#define PROMPT_TOKENS 16

#define CHAT "data: {\"id\":\"chatcmpl-a00b5a234e42093c\",\"object\":\"chat.completion.chunk\"," \
             "\"created\":1795469846,\"model\":\"bench\",\"choices\":["
#define TEXT "data: {\"id\":\"cmpl-a00b5a234e42093c\",\"object\":\"text_completion\"," \
             "\"created\":1795469846,\"model\":\"bench\",\"choices\":["
#define LINE "{\"model\":\"bench\",\"created_at\":\"2026-11-23T21:37:26.017107Z\","
#define NONE "\"logprobs\":null,\"finish_reason\":null"
#define LENGTH "\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null,\"token_ids\":null"

struct token {  // one token's event as an HTTP chunk
    char bytes[512];
    int length, stamp_at;
};

static struct dialect {
    const char *path;
    bool ndjson;
    const char *role;                  // the event in front of the first token, or NULL
    const char *before, *after, *last; // a token's event: before, 19 digits and a space, after; of the last token: last
    const char *end;                   // what the event with the counts begins with
    struct token token, last_token;
} dialects[] = {
    {.path = "/v1/chat/completions",
     .role = CHAT "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}," NONE
                  "}],\"prompt_token_ids\":null}\n\n",
     .before = CHAT "{\"index\":0,\"delta\":{\"content\":\"",
     .after = "\"}," NONE ",\"token_ids\":null}]}\n\n",
     .last = "\"}," LENGTH "}]}\n\n",
     .end = CHAT},
    {.path = "/v1/completions",
     .before = TEXT "{\"index\":0,\"text\":\"",
     .after = "\"," NONE ",\"stop_reason\":null,\"token_ids\":null}],\"usage\":null}\n\n",
     .last = "\"," LENGTH "}],\"usage\":null}\n\n",
     .end = TEXT},
    {.path = "/api/chat",
     .ndjson = true,
     .before = LINE "\"message\":{\"role\":\"assistant\",\"content\":\"",
     .after = "\"},\"done\":false}\n",
     .last = "\"},\"done\":false}\n",
     .end = LINE "\"message\":{\"role\":\"assistant\",\"content\":\"\"},"},
    {.path = "/api/generate",
     .ndjson = true,
     .before = LINE "\"response\":\"",
     .after = "\",\"done\":false}\n",
     .last = "\",\"done\":false}\n",
     .end = LINE "\"response\":\"\","},
};

static int make_chunk(char *into, size_t size, const char *event) {
    return snprintf(into, size, "%zx\r\n%s\r\n", strlen(event), event);
}

static void make_token(struct token *token, const char *before, const char *after) {
    char event[480];
    snprintf(event, sizeof event, "%s%0*d %s", before, STAMP_DIGITS, 0, after);
    token->length = make_chunk(token->bytes, sizeof token->bytes, event);
    token->stamp_at = (int)(strstr(token->bytes, before) - token->bytes) + (int)strlen(before);
}

static void write_stamp(char *digits, ns_t stamp) {
    for (int i = STAMP_DIGITS - 1; i >= 0; i--, stamp /= 10) digits[i] = (char)('0' + stamp % 10);
}

static int make_end(const struct dialect *d, int tokens, ns_t total_ns, char *into, size_t size) {
    char event[1024];
    int n = 0;
    if (d->ndjson) {
        snprintf(event, sizeof event,
                 "%s\"done\":true,\"done_reason\":\"length\",\"total_duration\":%lld,\"load_duration\":1,"
                 "\"prompt_eval_count\":%d,\"prompt_eval_duration\":1,\"eval_count\":%d,\"eval_duration\":%lld}\n",
                 d->end, (long long)total_ns, PROMPT_TOKENS, tokens, (long long)total_ns);
        n = make_chunk(into, size, event);
    } else {
        snprintf(event, sizeof event,
                 "%s],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n", d->end,
                 PROMPT_TOKENS, PROMPT_TOKENS + tokens, tokens);
        n = make_chunk(into, size, event);
        n += make_chunk(into + n, size - n, "data: [DONE]\n\n");
    }
    return n + snprintf(into + n, size - n, "0\r\n\r\n");
}
