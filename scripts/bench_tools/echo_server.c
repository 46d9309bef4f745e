/* The MCP server that stdio is measured in front of: newline JSON-RPC, answered as echo.h says; it ends at EOF. */
#include <errno.h>
#include <unistd.h>

#include "echo.h"

static void flush(void) {
    for (size_t done = 0; done < out.len;) {
        ssize_t n = write(1, out.at + done, out.len - done);
        if (n < 0) {
            if (errno == EINTR) continue;
            exit(1); /* nobody reads any more */
        }
        done += (size_t)n;
    }
    out.len = 0;
}

int main(void) {
    size_t cap = 1 << 18, len = 0, seen = 0;
    char *in = malloc(cap);
    if (!in) return 1;
    for (;;) {
        if (len == cap) {
            cap *= 2;
            in = realloc(in, cap);
            if (!in) return 1;
        }
        ssize_t n = read(0, in + len, cap - len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0;
        len += (size_t)n;
        size_t begin = 0;
        char *newline;
        while ((newline = memchr(in + seen, '\n', len - seen))) {
            size_t at = (size_t)(newline - in);
            answer(in + begin, at - begin);
            begin = seen = at + 1;
            if (out.len > 1 << 16) flush();
        }
        if (out.len) flush();
        memmove(in, in + begin, len - begin);
        len -= begin;
        seen = len;
    }
}
