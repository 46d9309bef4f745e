/* The little of HTTP/1.1 that both ends of the bench read: headers, and bodies with a length or in chunks. */
#ifndef AEGIS_BENCH_HTTP_H
#define AEGIS_BENCH_HTTP_H

#include <stdlib.h>
#include <strings.h>

#include "scan.h"

/* The value of one header in a head that ends at `end`, without the space around it; {NULL, 0} where there is none. */
static inline span http_header(const char *at, const char *end, const char *name) {
    size_t len = strlen(name);
    while ((at = memchr(at, '\n', (size_t)(end - at)))) {
        at++;
        if ((size_t)(end - at) <= len || at[len] != ':' || strncasecmp(at, name, len) != 0) continue;
        const char *begin = at + len + 1, *stop = memchr(begin, '\n', (size_t)(end - begin));
        if (!stop) break;
        while (begin < stop && (*begin == ' ' || *begin == '\t')) begin++;
        while (begin < stop && (stop[-1] == ' ' || stop[-1] == '\t' || stop[-1] == '\r')) stop--;
        return (span){begin, (size_t)(stop - begin)};
    }
    return (span){NULL, 0};
}

static inline bool http_says(span value, const char *word) {
    return value.at && value.len >= strlen(word) && strncasecmp(value.at, word, strlen(word)) == 0;
}

/* Gathers a body of chunks that begins at `at`, in `into`, which has room for it. Returns what follows it, or NULL where
 * it is not whole yet. */
static inline const char *http_chunks(const char *at, const char *end, char *into, size_t *len) {
    for (*len = 0;;) {
        const char *line = memchr(at, '\n', (size_t)(end - at));
        if (!line) return NULL;
        size_t size = strtoul(at, NULL, 16);
        at = line + 1;
        if ((size_t)(end - at) < size + 2) return NULL;
        memcpy(into + *len, at, size);
        *len += size;
        at += size + 2;
        if (!size) return at;
    }
}

/* The last event of a stream that has any data. */
static inline span http_last_event(span stream) {
    span found = {NULL, 0};
    const char *at = stream.at, *end = stream.at + stream.len;
    while (at < end) {
        const char *line = memchr(at, '\n', (size_t)(end - at)), *stop = line ? line : end;
        if (stop - at > 5 && memcmp(at, "data:", 5) == 0) {
            const char *data = scan_space(at + 5, stop);
            if (data < stop) found = (span){data, (size_t)(stop - data)};
        }
        at = stop + 1;
    }
    return found;
}

#endif
