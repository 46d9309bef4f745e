/* The MCP server that HTTP is measured in front of: JSON-RPC in POSTs over keep-alive connections, answered as echo.h
 * says from one epoll loop.
 *
 *   http-server [PORT]     listens on 127.0.0.1 (0 or none: any port), prints the port, ends when stdin does
 *
 * A request is answered with application/json, anything else POSTed with 202; `initialize` names a session, DELETE ends
 * it (sessions are not kept: what they are is the proxies' affair); GET is refused, as there is nothing to stream. Only
 * what a well-behaved client or proxy sends is understood: bodies with a Content-Length, headers of 16 KiB at most. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "echo.h"
#include "http.h"

enum { HEADERS_MAX = 16384, BODY_MAX = 16 << 20, READ_CHUNK = 1 << 17 };

typedef struct {
    int fd;
    char *in, *rest; /* what was received and not answered; what could not be written yet */
    size_t len, cap, rest_len, rest_done;
    bool closing;
} client;

static int loop;
static unsigned sessions;

static void watch(client *c, uint32_t events) {
    struct epoll_event on = {.events = events, .data.ptr = c};
    epoll_ctl(loop, EPOLL_CTL_MOD, c->fd, &on);
}

static void drop(client *c) {
    close(c->fd);
    free(c->in);
    free(c->rest);
    free(c);
}

/* False when the client is gone. What does not fit in the socket is kept, and nothing more is read until it is out. */
static bool deliver(client *c, const char *text, size_t len) {
    size_t done = 0;
    while (done < len) {
        ssize_t n = send(c->fd, text + done, len - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) return false;
        done += (size_t)n;
    }
    if (done == len) return true;
    char *rest = malloc(len - done);
    if (!rest) return false;
    memcpy(rest, text + done, len - done);
    free(c->rest);
    c->rest = rest;
    c->rest_len = len - done;
    c->rest_done = 0;
    watch(c, EPOLLOUT);
    return true;
}

static bool flush_rest(client *c) {
    while (c->rest_done < c->rest_len) {
        ssize_t n = send(c->fd, c->rest + c->rest_done, c->rest_len - c->rest_done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN;
        c->rest_done += (size_t)n;
    }
    free(c->rest);
    c->rest = NULL;
    c->rest_len = c->rest_done = 0;
    watch(c, EPOLLIN);
    return true;
}

/* One answer: its head and `body`, in one write. */
static bool respond(client *c, const char *status, const char *more, const char *body, size_t len) {
    static char *page;
    static size_t cap;
    if (cap < len + 512) {
        cap = (len + 512) * 2;
        page = realloc(page, cap);
        if (!page) abort();
    }
    int head = snprintf(page, 512, "HTTP/1.1 %s\r\n%sContent-Length: %zu\r\n\r\n", status, more, len);
    memcpy(page + head, body, len);
    return deliver(c, page, (size_t)head + len);
}

static bool post(client *c, const char *body, size_t len) {
    static const char JSON[] = "Content-Type: application/json\r\n";
    char more[128];
    out.len = 0;
    while (len && (body[len - 1] == '\n' || body[len - 1] == ' ')) len--;
    answer(body, len);
    if (!out.len) return respond(c, "202 Accepted", "", "", 0);
    span method = scan_find((span){body, len}, "method");
    if (!span_is(method, "\"initialize\"")) return respond(c, "200 OK", JSON, out.at, out.len - 1);
    snprintf(more, sizeof more, "%sMcp-Session-Id: bench-%u\r\n", JSON, ++sessions);
    return respond(c, "200 OK", more, out.at, out.len - 1);
}

/* Answers every whole request that is there. False when the connection is to be closed. */
static bool serve(client *c) {
    size_t begin = 0;
    while (c->len > begin && !c->rest) {
        const char *at = c->in + begin;
        size_t have = c->len - begin;
        const char *blank = memmem(at, have, "\r\n\r\n", 4);
        if (!blank) {
            if (have > HEADERS_MAX) return false;
            break;
        }
        const char *end = blank + 4;
        span length = http_header(at, end, "Content-Length");
        size_t body = length.at ? strtoul(length.at, NULL, 10) : 0;
        bool good = true;
        if (!length.at && http_header(at, end, "Transfer-Encoding").at) {
            respond(c, "411 Length Required", "Connection: close\r\n", "", 0);
            return false;
        }
        if (body > BODY_MAX) return false;
        if ((size_t)(c->in + c->len - end) < body) break;
        if (strncmp(at, "POST ", 5) == 0) good = post(c, end, body);
        else if (strncmp(at, "DELETE ", 7) == 0) good = respond(c, "200 OK", "", "", 0);
        else good = respond(c, "405 Method Not Allowed", "Allow: POST, DELETE\r\n", "", 0);
        if (!good) return false;
        begin = (size_t)(end - c->in) + body;
    }
    memmove(c->in, c->in + begin, c->len - begin);
    c->len -= begin;
    return true;
}

static bool hear(client *c) {
    if (c->cap - c->len < READ_CHUNK) {
        c->cap = c->len * 2 + READ_CHUNK;
        c->in = realloc(c->in, c->cap);
        if (!c->in) abort();
    }
    ssize_t n = recv(c->fd, c->in + c->len, c->cap - c->len, 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    c->len += (size_t)n;
    return serve(c);
}

static void welcome(int listener) {
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        client *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        struct epoll_event on = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(loop, EPOLL_CTL_ADD, fd, &on);
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 256) ||
        getsockname(listener, (struct sockaddr *)&address, &size)) {
        perror("http-server");
        return 71;
    }
    signal(SIGPIPE, SIG_IGN);
    loop = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event on = {.events = EPOLLIN, .data.ptr = &listener}, stdin_on = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &on);
    epoll_ctl(loop, EPOLL_CTL_ADD, 0, &stdin_on);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int got = epoll_wait(loop, events, 64, -1);
        for (int i = 0; i < got; i++) {
            char text[64];
            if (events[i].data.ptr == NULL) {
                if (read(0, text, sizeof text) <= 0) return 0;
            } else if (events[i].data.ptr == &listener) welcome(listener);
            else {
                client *c = events[i].data.ptr;
                bool alive = events[i].events & EPOLLOUT ? flush_rest(c) && (c->rest || serve(c)) : hear(c);
                if (!alive) drop(c);
            }
        }
    }
}
