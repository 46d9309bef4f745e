/* Walks JSON text in place: finds members and skips values, copying and allocating nothing.
 *
 * It checks what it steps over only as far as it must to find the end of it, which is enough for a server that
 * answers honest clients and for a client that compares what comes back byte for byte with what it sent. */
#ifndef AEGIS_BENCH_SCAN_H
#define AEGIS_BENCH_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef struct {
    const char *at; /* NULL where there is none */
    size_t len;
} span;

static inline const char *scan_space(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) p++;
    return p;
}

/* p at the opening quote; returns just past the closing one, or NULL. */
static inline const char *scan_string(const char *p, const char *end) {
    const char *start = ++p;
    for (;;) {
        const char *quote = memchr(p, '"', (size_t)(end - p));
        if (!quote) return NULL;
        const char *back = quote;
        while (back > start && back[-1] == '\\') back--;
        p = quote + 1;
        if (((quote - back) & 1) == 0) return p;
    }
}

/* Returns just past the value that begins at p, or NULL. */
static inline const char *scan_value(const char *p, const char *end) {
    int depth = 0;
    p = scan_space(p, end);
    while (p < end) {
        switch (*p) {
        case '"':
            p = scan_string(p, end);
            if (!p) return NULL;
            break;
        case '{':
        case '[':
            depth++;
            p++;
            continue;
        case '}':
        case ']':
            if (depth == 0) return NULL;
            depth--;
            p++;
            break;
        case ',':
        case ':':
        case ' ':
        case '\t':
        case '\r':
        case '\n':
            if (depth == 0) return NULL;
            p++;
            continue;
        default: /* number, true, false, null */
            while (p < end && !strchr(",:]} \t\r\n", *p)) p++;
            break;
        }
        if (depth == 0) return p;
    }
    return NULL;
}

/* Steps over the members of an object. *cursor starts at its '{' and moves on. 1 a member, 0 the end, -1 not JSON. */
static inline int scan_member(const char **cursor, const char *end, span *key, span *value) {
    const char *p = scan_space(*cursor, end);
    if (p >= end || (*p != '{' && *p != ',' && *p != '}')) return -1;
    if (*p == '}') {
        *cursor = p + 1;
        return 0;
    }
    bool first = *p == '{';
    p = scan_space(p + 1, end);
    if (first && p < end && *p == '}') {
        *cursor = p + 1;
        return 0;
    }
    if (p >= end || *p != '"') return -1;
    const char *key_end = scan_string(p, end);
    if (!key_end) return -1;
    *key = (span){p + 1, (size_t)(key_end - p) - 2};
    p = scan_space(key_end, end);
    if (p >= end || *p != ':') return -1;
    p = scan_space(p + 1, end);
    const char *value_end = scan_value(p, end);
    if (!value_end) return -1;
    *value = (span){p, (size_t)(value_end - p)};
    *cursor = value_end;
    return 1;
}

static inline bool span_is(span s, const char *text) {
    return s.at && s.len == strlen(text) && memcmp(s.at, text, s.len) == 0;
}

/* The value of one member of an object; {NULL, 0} where it has none. */
static inline span scan_find(span object, const char *name) {
    const char *cursor = object.at, *end = object.at + object.len;
    span key, value;
    if (!object.at || object.len == 0 || *object.at != '{') return (span){NULL, 0};
    while (scan_member(&cursor, end, &key, &value) == 1)
        if (span_is(key, name)) return value;
    return (span){NULL, 0};
}

#endif
