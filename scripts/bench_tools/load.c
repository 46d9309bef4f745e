/* The client that everything is measured with: wraps N servers, drives them from one epoll loop and checks every answer.
 *
 *   load [-n N] [-e STDERR_FILE] [-t SECONDS] [-T TOOL] -- COMMAND [ARG...]
 *   load [-n N] [-t SECONDS] [-T TOOL] -u http://127.0.0.1:PORT/PATH
 *
 * Starts COMMAND N times ({n} in an argument becomes 0..N-1), or opens N sessions over HTTP, a kept connection each,
 * does the MCP handshake with each, prints one JSON line, then answers each line on stdin with one JSON line:
 *
 *   window seconds=1 [warm=0.1] [size=300] [k=1]                 closed loop: k calls in flight on each connection
 *   window seconds=4 rate=200 [spacing=poisson|fixed] [size=300] open loop: so many calls a second over all connections
 *                                                                (over HTTP: closed loop with k=1 only)
 *   start                  one more COMMAND: spawn -> initialize answered, then closed again
 *   probe TOOL             one call of TOOL on the first connection: what came back
 *   usage [pid=P] [memory=1]   memory and CPU of all that the wrapped commands are, and of P and all below it
 *   place client=0 target=1 [pid=P]   cores (-1: any) of this client, of the wrapped commands, of P and all below it
 *   quit
 *
 * Every call carries its own number in its argument; an answer counts only if it has an open id and exactly that text.
 * Latency runs from just before the frame is handed to write() to the read() that brought its answer (over HTTP: the
 * end of the response, as only then the next request may follow). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "http.h"
#include "scan.h"
#include "tree.h"

enum { OPEN_SLOTS = 8192, READ_CHUNK = 1 << 18, NUMBER = 16 };
#define FIRST_ID 1000000000ull /* ten digits from the first call to the last, so that frames keep their size */

typedef struct {
    uint64_t id, sent;
} slot;

typedef struct {
    char *at;
    size_t len, cap;
} buffer;

typedef struct {
    pid_t pid;
    int to, from;
    bool alive, writing;
    buffer in, out;
    size_t searched, written; /* how much of `in` holds no newline; how much of `out` is gone */
    unsigned open;
    int step; /* 0 initialize sent, 1 answered (HTTP: the notification sent), 2 tools/list sent, 3 ready */
    int tools;
    uint64_t spawned, initialized;
    slot *slots;
    /* over HTTP: */
    char head[512]; /* of every POST, up to the length of its body */
    size_t head_len;
    buffer body; /* what came in chunks */
    int status;  /* of the response just read */
    bool closing;
    uint64_t last_id;
} conn;

static const char *tool = "echo", *stderr_path = "/dev/null";
static char **command;
static int port; /* of the server over HTTP; 0: pipes */
static char path[200];
static double patience = 60;
static cpu_set_t everywhere, target_cores;
static uint64_t next_id = FIRST_ID;

static char *filler; /* what every text ends with */
static size_t filler_len;

static struct {
    uint64_t *at; /* ns */
    size_t len, cap;
} laps;
static uint64_t errors;
static char error_sample[400];

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void *need(void *memory) {
    if (!memory) {
        fputs("load: out of memory\n", stderr);
        exit(70);
    }
    return memory;
}

static void room(buffer *b, size_t more) {
    if (b->len + more <= b->cap) return;
    b->cap = (b->len + more) * 2;
    b->at = need(realloc(b->at, b->cap));
}

static void add(buffer *b, const void *text, size_t len) {
    room(b, len);
    memcpy(b->at + b->len, text, len);
    b->len += len;
}

static void add_text(buffer *b, const char *text) { add(b, text, strlen(text)); }

/* Keeps the first error of a window in a form that can stand inside a JSON string. */
static void complain(const char *why, const char *text, size_t len) {
    if (errors++) return;
    size_t used = (size_t)snprintf(error_sample, sizeof error_sample, "%s: ", why);
    for (size_t i = 0; i < len && used < sizeof error_sample - 2; i++) {
        unsigned char c = (unsigned char)text[i];
        error_sample[used++] = c == '"' || c == '\\' ? '\'' : c < ' ' || c > '~' ? '?' : (char)c;
    }
    error_sample[used] = 0;
}

static void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

/* ---- wrapped processes ---- */

/* Connects anew, within the same session. */
static void dial(conn *c) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->to >= 0) close(c->to);
    if (c->from >= 0) close(c->from);
    c->from = fd;
    c->to = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* so that both directions can be watched apart, as those of pipes are */
    c->alive = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (!c->alive) complain("cannot connect", strerror(errno), strlen(strerror(errno)));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    c->closing = c->writing = false;
    c->in.len = c->out.len = c->searched = c->written = 0;
}

static void make_head(conn *c, span session) {
    c->head_len = (size_t)snprintf(c->head, sizeof c->head,
                                   "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                                   "Accept: application/json, text/event-stream\r\n",
                                   path, port);
    if (session.at && session.len < 128)
        c->head_len += (size_t)snprintf(c->head + c->head_len, sizeof c->head - c->head_len,
                                        "MCP-Protocol-Version: 2025-06-18\r\nMcp-Session-Id: %.*s\r\n",
                                        (int)session.len, session.at);
    c->head_len += (size_t)snprintf(c->head + c->head_len, sizeof c->head - c->head_len, "Content-Length: ");
}

/* A server may have closed a connection that lay idle: then a new one, before anything is sent. */
static void revive(conn *c) {
    char byte;
    if (port && (c->closing || !c->alive || recv(c->from, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)) dial(c);
}

static void spawn(conn *c, int number) {
    if (port) {
        memset(c, 0, sizeof *c);
        c->to = c->from = -1;
        c->slots = need(calloc(OPEN_SLOTS, sizeof *c->slots));
        c->spawned = now_ns();
        make_head(c, (span){NULL, 0});
        dial(c);
        return;
    }
    int down[2], up[2], argc = 0;
    while (command[argc]) argc++;
    char **argv = need(calloc((size_t)argc + 1, sizeof *argv));
    for (int i = 0; i < argc; i++) {
        buffer text = {0};
        for (const char *p = command[i]; *p;) {
            if (strncmp(p, "{n}", 3) == 0) {
                char digits[16];
                snprintf(digits, sizeof digits, "%d", number);
                add_text(&text, digits);
                p += 3;
            } else add(&text, p++, 1);
        }
        add(&text, "", 1);
        argv[i] = text.at;
    }
    if (pipe2(down, O_CLOEXEC) || pipe2(up, O_CLOEXEC)) {
        perror("load: pipe");
        exit(71);
    }
    int err = open(stderr_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    memset(c, 0, sizeof *c);
    c->slots = need(calloc(OPEN_SLOTS, sizeof *c->slots));
    c->spawned = now_ns();
    pid_t pid = fork();
    if (pid == 0) {
        sched_setaffinity(0, sizeof target_cores, &target_cores);
        prctl(PR_SET_TIMERSLACK, 50000);
        signal(SIGPIPE, SIG_DFL);
        dup2(down[0], 0);
        dup2(up[1], 1);
        dup2(err, 2);
        execvp(argv[0], argv);
        dprintf(2, "load: cannot run %s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    close(down[0]);
    close(up[1]);
    close(err);
    for (int i = 0; i < argc; i++) free(argv[i]);
    free(argv);
    if (pid < 0) {
        perror("load: fork");
        exit(71);
    }
    c->pid = pid;
    c->to = down[1];
    c->from = up[0];
    c->alive = true;
    fcntl(c->to, F_SETFL, O_NONBLOCK);
    fcntl(c->from, F_SETFL, O_NONBLOCK);
}

/* Ends the session, and the connection; what the server says to that is its own affair. */
static bool hang_up(conn *c) {
    char order[640], rest[4096];
    revive(c);
    if (c->alive) {
        int len = snprintf(order, sizeof order, "DELETE%.*s0\r\n\r\n", (int)c->head_len - 4, c->head + 4);
        struct pollfd on = {c->from, POLLIN, 0};
        ssize_t heard = write(c->to, order, (size_t)len) == len && poll(&on, 1, 2000) > 0;
        if (heard) heard = read(c->from, rest, sizeof rest);
    }
    close(c->to);
    close(c->from);
    free(c->in.at);
    free(c->out.at);
    free(c->body.at);
    free(c->slots);
    return true;
}

/* Closes stdin and waits; a process that will not go is told so, then made to. True if it went by itself. */
static bool reap(conn *c) {
    bool willing = false;
    if (port) return hang_up(c);
    if (c->to >= 0) close(c->to);
    for (int i = 0; i < 800 && !willing; i++) {
        char rest[65536]; /* what still comes must not hold it up */
        while (c->from >= 0 && read(c->from, rest, sizeof rest) > 0) continue;
        willing = waitpid(c->pid, NULL, WNOHANG) != 0;
        if (!willing) poll(NULL, 0, 5);
    }
    if (!willing) {
        kill(c->pid, SIGTERM);
        for (int i = 0; i < 400 && waitpid(c->pid, NULL, WNOHANG) == 0; i++) {
            if (i == 200) kill(c->pid, SIGKILL);
            poll(NULL, 0, 5);
        }
    }
    close(c->from);
    free(c->in.at);
    free(c->out.at);
    free(c->slots);
    return willing;
}

/* ---- frames ---- */

static void push(conn *c) {
    while (c->alive && c->written < c->out.len) {
        ssize_t n = write(c->to, c->out.at + c->written, c->out.len - c->written);
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN) return;
            c->alive = false;
            return;
        }
        c->written += (size_t)n;
    }
    c->out.len = c->written = 0;
}

static const char CALL_ID[] = "{\"jsonrpc\":\"2.0\",\"id\":";
static const char CALL_NAME[] = ",\"method\":\"tools/call\",\"params\":{\"name\":\"";
static const char CALL_TEXT[] = "\",\"arguments\":{\"text\":\"";
static const char CALL_END[] = "\"}}}";

static size_t frame_overhead(void) {
    return sizeof CALL_ID + sizeof CALL_NAME + sizeof CALL_TEXT + sizeof CALL_END - 4 + 10 + strlen(tool) + NUMBER;
}

/* What stands before a frame of that length, and after it. */
static void open_frame(conn *c, size_t len) {
    char digits[32];
    if (!port) return;
    add(&c->out, c->head, c->head_len);
    add(&c->out, digits, (size_t)snprintf(digits, sizeof digits, "%zu\r\n\r\n", len));
}

static void close_frame(conn *c) {
    if (!port) add(&c->out, "\n", 1);
}

static void put_frame(conn *c, const char *text) {
    open_frame(c, strlen(text));
    add_text(&c->out, text);
    close_frame(c);
}

/* "call 1000000000 ": what makes each text its own. */
static void number_text(char text[NUMBER], uint64_t id) {
    memcpy(text, "call ", 5);
    for (int i = 14; i >= 5; i--, id /= 10) text[i] = (char)('0' + id % 10);
    text[15] = ' ';
}

/* Queues one call; the caller pushes. */
static void put_call(conn *c, uint64_t at) {
    char text[NUMBER];
    uint64_t id = next_id++;
    slot *s = &c->slots[id % OPEN_SLOTS];
    if (s->id) { /* 8 192 calls later still no answer */
        complain("no answer", "", 0);
        c->open--;
    }
    *s = (slot){id, at};
    c->open++;
    c->last_id = id;
    number_text(text, id);
    room(&c->out, c->head_len + 32 + frame_overhead() + filler_len + 1);
    open_frame(c, frame_overhead() + filler_len);
    add(&c->out, CALL_ID, sizeof CALL_ID - 1);
    add(&c->out, text + 5, 10);
    add(&c->out, CALL_NAME, sizeof CALL_NAME - 1);
    add_text(&c->out, tool);
    add(&c->out, CALL_TEXT, sizeof CALL_TEXT - 1);
    add(&c->out, text, NUMBER);
    add(&c->out, filler, filler_len);
    add(&c->out, CALL_END, sizeof CALL_END - 1);
    close_frame(c);
}

static bool text_matches(span result, uint64_t id) {
    char text[NUMBER];
    span content = scan_find(result, "content");
    if (!content.at || content.len < 2 || *content.at != '[') return false;
    const char *item = scan_space(content.at + 1, content.at + content.len);
    span said = scan_find((span){item, (size_t)(content.at + content.len - item)}, "text");
    if (said.len != NUMBER + filler_len + 2) return false;
    number_text(text, id);
    return memcmp(said.at + 1, text, NUMBER) == 0 && memcmp(said.at + 1 + NUMBER, filler, filler_len) == 0;
}

/* 1: a call was answered as it should be; 0: something else that is no fault; errors are counted. */
static int take_answer(conn *c, const char *line, size_t len, uint64_t at, uint64_t since) {
    const char *cursor = line, *end = line + len;
    span key, value, id = {0}, result = {0}, method = {0};
    int more;
    if (len == 0) return 0;
    while ((more = scan_member(&cursor, end, &key, &value)) == 1) {
        if (span_is(key, "id")) id = value;
        else if (span_is(key, "result")) result = value;
        else if (span_is(key, "method")) method = value;
    }
    if (more < 0) {
        complain("not a JSON object", line, len);
        return 0;
    }
    if (method.at) return 0; /* notifications and the server's own requests are not what is measured */
    uint64_t number = 0;
    for (size_t i = 0; i < id.len; i++) {
        if (id.at[i] < '0' || id.at[i] > '9') number = 0;
        else number = number * 10 + (uint64_t)(id.at[i] - '0');
    }
    slot *s = &c->slots[number % OPEN_SLOTS];
    if (number == 0 || s->id != number) {
        if (!id.at || number == 0 || number >= since) complain("answer to no open call", line, len);
        return 0;
    }
    uint64_t took = at - s->sent;
    s->id = 0;
    c->open--;
    if (!text_matches(result, number)) {
        complain("not the text that was sent", line, len);
        return 1;
    }
    if (laps.len == laps.cap) {
        laps.cap = laps.cap ? laps.cap * 2 : 1 << 16;
        laps.at = need(realloc(laps.at, laps.cap * sizeof *laps.at));
    }
    laps.at[laps.len++] = took;
    return 1;
}

/* Reads once. Returns the number of bytes, 0 when there was nothing; marks the connection dead at EOF. */
static size_t fill(conn *c) {
    room(&c->in, READ_CHUNK);
    ssize_t n = read(c->from, c->in.at + c->in.len, c->in.cap - c->in.len);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) {
        c->alive = false;
        return 0;
    }
    c->in.len += (size_t)n;
    return (size_t)n;
}

/* The frame of the next whole response in `in` from *begin on, empty where it has none; false when none is whole. */
static bool next_response(conn *c, size_t *begin, span *frame) {
    const char *at = c->in.at + *begin, *have = c->in.at + c->in.len;
    const char *blank = at < have ? memmem(at, (size_t)(have - at), "\r\n\r\n", 4) : NULL;
    if (!blank) return false;
    const char *head_end = blank + 4, *after = NULL;
    span length = http_header(at, head_end, "Content-Length");
    if (length.at) {
        *frame = (span){head_end, strtoul(length.at, NULL, 10)};
        if ((size_t)(have - head_end) >= frame->len) after = head_end + frame->len;
    } else if (http_says(http_header(at, head_end, "Transfer-Encoding"), "chunked")) {
        c->body.len = 0;
        room(&c->body, (size_t)(have - head_end));
        after = http_chunks(head_end, have, c->body.at, &c->body.len);
        *frame = (span){c->body.at, c->body.len};
    } else {
        *frame = (span){NULL, 0};
        after = head_end; /* 202 and 204 */
    }
    if (!after) return false;
    c->status = atoi(at + 9);
    c->closing = http_says(http_header(at, head_end, "Connection"), "close");
    span session = http_header(at, head_end, "Mcp-Session-Id");
    if (c->step == 0) make_head(c, session);
    if (http_says(http_header(at, head_end, "Content-Type"), "text/event-stream")) *frame = http_last_event(*frame);
    *begin = c->searched = (size_t)(after - c->in.at);
    return true;
}

/* The next whole frame in `in` from *begin on; false when there is none. */
static bool next_frame(conn *c, size_t *begin, span *line) {
    if (port) return next_response(c, begin, line);
    char *newline = memchr(c->in.at + c->searched, '\n', c->in.len - c->searched);
    if (!newline) {
        c->searched = c->in.len;
        return false;
    }
    *line = (span){c->in.at + *begin, (size_t)(newline - c->in.at) - *begin};
    *begin = c->searched = (size_t)(newline - c->in.at) + 1;
    return true;
}

static void drop_read(conn *c, size_t begin) {
    if (!begin) return;
    memmove(c->in.at, c->in.at + begin, c->in.len - begin);
    c->in.len -= begin;
    c->searched -= begin;
}

/* Over HTTP a response without its answer ends the call all the same. */
static int lose(conn *c, span line) {
    char why[32];
    slot *s = &c->slots[c->last_id % OPEN_SLOTS];
    if (s->id != c->last_id || !c->open) return 0;
    snprintf(why, sizeof why, "HTTP %d without an answer", c->status);
    complain(why, line.at, line.len);
    s->id = 0;
    c->open--;
    return 1;
}

static void watch_reads(int ep, conn *all, int i) {
    struct epoll_event on = {.events = EPOLLIN, .data.u64 = (uint64_t)i << 1};
    epoll_ctl(ep, EPOLL_CTL_ADD, all[i].from, &on);
}

static void watch(int ep, conn *all, int i, bool writing) {
    struct epoll_event on = {.events = EPOLLOUT, .data.u64 = (uint64_t)i << 1 | 1};
    if (writing == all[i].writing) return;
    epoll_ctl(ep, writing ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, all[i].to, &on);
    all[i].writing = writing;
}

static int watch_all(conn *all, int n) {
    int ep = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < n; i++) {
        all[i].writing = false;
        if (all[i].alive) watch_reads(ep, all, i);
    }
    return ep;
}

/* ---- handshake ---- */

static void send_initialize(conn *c) {
    put_frame(c, "{\"jsonrpc\":\"2.0\",\"id\":\"hello\",\"method\":\"initialize\",\"params\":{\"protocolVersion\":"
                 "\"2025-06-18\",\"capabilities\":{},\"clientInfo\":{\"name\":\"bench-load\",\"version\":\"1\"}}}");
    push(c);
}

static void shake(conn *c, span line, uint64_t at) {
    static const char LIST[] = "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/list\"}";
    if (port && c->status >= 300 && c->step != 1) {
        complain("handshake refused", line.at, line.len);
        c->alive = false;
        return;
    }
    span object = {scan_space(line.at, line.at + line.len), 0};
    object.len = (size_t)(line.at + line.len - object.at);
    span id = scan_find(object, "id"), result = scan_find(object, "result");
    if (c->step == 0 && span_is(id, "\"hello\"")) {
        if (!result.at) {
            complain("initialize refused", line.at, line.len);
            c->alive = false;
            return;
        }
        c->initialized = at;
        c->step = port ? 1 : 2;
        put_frame(c, "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}");
        if (!port) put_frame(c, LIST);
        push(c);
    } else if (c->step == 1) { /* over HTTP one request follows the other's response */
        if (c->status >= 300) {
            complain("notification refused", line.at, line.len);
            c->alive = false;
            return;
        }
        c->step = 2;
        put_frame(c, LIST);
        push(c);
    } else if (c->step == 2 && span_is(id, "2")) {
        span tools = scan_find(result, "tools");
        const char *p = tools.at ? tools.at + 1 : NULL, *end = tools.at + tools.len;
        if (!p) {
            complain("tools/list refused", line.at, line.len);
            c->alive = false;
            return;
        }
        while (p && (p = scan_space(p, end)) < end && *p == '{') {
            p = scan_value(p, end);
            c->tools++;
            if (p && (p = scan_space(p, end)) < end && *p == ',') p++;
        }
        c->step = 3;
    }
}

/* Drives all connections through the handshake. True when every one of them is ready. */
static bool bring_up(conn *all, int n, int until) {
    int ep = watch_all(all, n), ready = 0;
    uint64_t deadline = now_ns() + (uint64_t)(patience * 1e9);
    for (int i = 0; i < n; i++) send_initialize(&all[i]);
    while (ready < n && now_ns() < deadline) {
        struct epoll_event events[64];
        int got = epoll_wait(ep, events, 64, 100);
        ready = 0;
        for (int e = 0; e < got; e++) {
            conn *c = &all[events[e].data.u64 >> 1];
            size_t begin = 0;
            span line;
            if (!c->alive || !fill(c)) continue;
            uint64_t at = now_ns();
            while (c->alive && next_frame(c, &begin, &line)) shake(c, line, at);
            drop_read(c, begin);
        }
        for (int i = 0; i < n; i++) {
            ready += all[i].alive && all[i].step >= until;
            if (!all[i].alive) {
                if (!errors) complain("the wrapped command went away during the handshake", "", 0);
                close(ep);
                return false;
            }
        }
    }
    if (ready < n) complain("no answer to the handshake in time", "", 0);
    close(ep);
    return ready == n;
}

/* ---- windows ---- */

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double lap_us(double part) {
    if (!laps.len) return 0;
    size_t at = (size_t)(part * (double)laps.len);
    return (double)laps.at[at < laps.len ? at : laps.len - 1] / 1e3;
}

static uint64_t random_state = 0x9e3779b97f4a7c15ull;

static double random_part(void) { /* in (0, 1] */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return ((double)(random_state >> 11) + 1) / 9007199254740993.0;
}

static void set_filler(size_t size) {
    static const char WORDS[] = "the quick brown fox jumps over the lazy dog and walks home along the river ";
    size_t overhead = frame_overhead();
    filler_len = size > overhead ? size - overhead : 0;
    filler = need(realloc(filler, filler_len + 1));
    for (size_t i = 0; i < filler_len; i++) filler[i] = WORDS[i % (sizeof WORDS - 1)];
}

typedef struct {
    double seconds, warm, rate;
    size_t size;
    int k;
    bool poisson;
} plan;

static void run_window(conn *all, int n, plan p) {
    laps.len = 0;
    errors = 0;
    *error_sample = 0;
    for (int i = 0; i < n; i++) revive(&all[i]);
    int ep = watch_all(all, n), clock = -1, turn = 0;
    uint64_t since = next_id, worst_late = 0;
    set_filler(p.size);
    if (p.rate > 0) {
        struct epoll_event on = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
        clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        epoll_ctl(ep, EPOLL_CTL_ADD, clock, &on);
    }
    uint64_t start = now_ns(), begin = start + (uint64_t)(p.warm * 1e9), end = begin + (uint64_t)(p.seconds * 1e9);
    uint64_t give_up = end + 10000000000ull, measured_from = 0, measured_to = 0, due = start;
    size_t warm_laps = 0, counted = 0;
    bool sending = true, armed = false;
    unsigned alive = 0, open = 0;

    for (int i = 0; i < n; i++) {
        if (!all[i].alive) continue;
        alive++;
        for (int k = 0; p.rate <= 0 && k < p.k; k++) put_call(&all[i], now_ns());
        push(&all[i]);
        watch(ep, all, i, all[i].out.len > 0);
    }
    for (;;) {
        uint64_t now = now_ns();
        if (!measured_from && now >= begin) {
            measured_from = now;
            warm_laps = laps.len;
        }
        if (sending && now >= end) {
            sending = false;
            measured_to = now;
            counted = laps.len;
        }
        if (p.rate > 0 && sending) {
            while (due <= now) {
                int tries = n;
                conn *c = &all[p.poisson ? (int)(random_part() * n) % n : turn++ % n];
                while (!c->alive && tries--) c = &all[turn++ % n];
                if (!c->alive) break;
                if (now - due > worst_late && now >= begin) worst_late = now - due;
                put_call(c, now_ns());
                push(c);
                watch(ep, all, (int)(c - all), c->out.len > 0);
                due += (uint64_t)(1e9 / p.rate * (p.poisson ? -log(random_part()) : 1));
                armed = false;
                now = now_ns();
            }
            if (!armed) {
                struct itimerspec at = {.it_value = {(time_t)(due / 1000000000ull), (long)(due % 1000000000ull)}};
                timerfd_settime(clock, TFD_TIMER_ABSTIME, &at, NULL);
                armed = true;
            }
        }
        open = 0;
        if (!sending || !alive) {
            for (int i = 0; i < n; i++) open += all[i].alive ? all[i].open : 0;
            if (!open || now > give_up) break;
        }
        uint64_t next = sending ? (measured_from ? end : begin) : give_up;
        struct epoll_event events[64];
        int wait = next > now ? (int)((next - now) / 1000000) + 1 : 0;
        int got = epoll_wait(ep, events, 64, wait > 1000 ? 1000 : wait);
        for (int e = 0; e < got; e++) {
            if (events[e].data.u64 == UINT64_MAX) {
                uint64_t ticks;
                if (read(clock, &ticks, sizeof ticks) > 0) armed = false;
                continue;
            }
            int i = (int)(events[e].data.u64 >> 1);
            conn *c = &all[i];
            if (!c->alive) continue;
            if (events[e].data.u64 & 1) {
                push(c);
            } else if (fill(c)) {
                uint64_t at = now_ns();
                size_t from = 0;
                span line;
                while (next_frame(c, &from, &line)) {
                    int answered = take_answer(c, line.at, line.len, at, since);
                    if (port && !answered) answered = lose(c, line);
                    if (c->closing) { /* the server's wish */
                        dial(c);
                        watch_reads(ep, all, i);
                        from = 0;
                    }
                    if (answered && sending && p.rate <= 0) put_call(c, at);
                }
                drop_read(c, from);
                push(c);
            }
            watch(ep, all, i, c->alive && c->out.len > c->written);
            if (!c->alive) {
                complain("the wrapped command went away", "", 0);
                epoll_ctl(ep, EPOLL_CTL_DEL, c->from, NULL);
                errors += c->open;
                c->open = 0;
                alive--;
            }
        }
    }
    for (int i = 0; i < n; i++) { /* late answers to these are no longer open calls */
        if (!all[i].open) continue;
        if (!errors) complain("no answer", "", 0), errors--;
        errors += all[i].open;
        all[i].open = 0;
        memset(all[i].slots, 0, OPEN_SLOTS * sizeof(slot));
    }
    close(ep);
    if (clock >= 0) close(clock);
    if (!measured_from) measured_from = begin;
    if (!measured_to) measured_to = now_ns();
    /* open loop: what was sent inside the window counts, also when its answer came after the end */
    size_t calls = (p.rate > 0 ? laps.len : counted) - warm_laps;
    double seconds = (double)(measured_to - measured_from) / 1e9, total = 0;
    memmove(laps.at, laps.at + warm_laps, calls * sizeof *laps.at);
    laps.len = calls;
    if (calls) qsort(laps.at, calls, sizeof *laps.at, by_size);
    for (size_t i = 0; i < calls; i++) total += (double)laps.at[i];
    say("{\"calls\":%zu,\"seconds\":%.6f,\"calls_per_s\":%.1f,\"p50_us\":%.2f,\"p99_us\":%.2f,\"mean_us\":%.2f,"
        "\"max_us\":%.2f,\"late_us\":%.2f,\"errors\":%" PRIu64 ",\"alive\":%u,\"error\":\"%s\"}",
        calls, seconds, seconds > 0 ? (double)calls / seconds : 0, lap_us(0.5), lap_us(0.99),
        calls ? total / (double)calls / 1e3 : 0, lap_us(1), (double)worst_late / 1e3, errors, alive, error_sample);
}

/* ---- orders ---- */

static double option(const char *order, const char *name, double otherwise) {
    char key[32];
    snprintf(key, sizeof key, " %s=", name);
    const char *at = strstr(order, key);
    return at ? atof(at + strlen(key)) : otherwise;
}

static void start_one(int number) {
    conn c;
    errors = 0;
    *error_sample = 0;
    spawn(&c, number);
    bool up = bring_up(&c, 1, 1);
    double ms = (double)(c.initialized - c.spawned) / 1e6;
    uint64_t closing = now_ns();
    bool willing = reap(&c);
    say("{\"ok\":%s,\"start_ms\":%.3f,\"stop_ms\":%.1f,\"ended_by_itself\":%s,\"error\":\"%s\"}", up ? "true" : "false",
        up ? ms : 0, (double)(now_ns() - closing) / 1e6, willing ? "true" : "false", error_sample);
}

static void probe(conn *c, const char *name) {
    char order[256];
    uint64_t id = next_id++, deadline = now_ns() + 10000000000ull;
    snprintf(order, sizeof order,
             "{\"jsonrpc\":\"2.0\",\"id\":%" PRIu64 ",\"method\":\"tools/call\",\"params\":{\"name\":\"%.100s\","
             "\"arguments\":{\"text\":\"probe\"}}}",
             id, name);
    revive(c);
    put_frame(c, order);
    push(c);
    while (c->alive && now_ns() < deadline) {
        struct pollfd on = {c->from, POLLIN, 0};
        size_t begin = 0;
        span line;
        poll(&on, 1, 100);
        if (!fill(c)) continue;
        while (next_frame(c, &begin, &line)) {
            span object = {scan_space(line.at, line.at + line.len), 0};
            object.len = (size_t)(line.at + line.len - object.at);
            span back = scan_find(object, "id");
            bool stopped = port && c->status >= 300; /* whatever the body says of it */
            if (!stopped && (!back.at || strtoull(back.at, NULL, 10) != id)) continue;
            bool is_error = stopped || scan_find(object, "error").at || span_is(scan_find(scan_find(object, "result"), "isError"), "true");
            errors = 0;
            complain("answer", line.at, line.len);
            say("{\"answered\":true,\"refused\":%s,\"text\":\"%s\"}", is_error ? "true" : "false", error_sample);
            drop_read(c, begin);
            return;
        }
        drop_read(c, begin);
    }
    say("{\"answered\":false,\"refused\":false,\"text\":\"\"}");
}

static void report_usage(int n, const char *order) {
    int memory = (int)option(order, "memory", 1);
    pid_t pid = (pid_t)option(order, "pid", 0), self = getpid();
    processes all = all_processes();
    usage own = {0, 0, 0, 0}, mine = tree_usage(&all, self, memory), other = {0, 0, 0, 0}, root = {0, 0, 0, 0};
    own.processes = 1;
    if (memory) add_memory(self, &own);
    each_thread(self, add_cpu, &own);
    if (pid) {
        other = tree_usage(&all, pid, memory);
        if (memory) add_memory(pid, &root);
    }
    free(all.at);
    say("{\"wrapped\":{\"count\":%d,\"processes\":%d,\"rss_kb\":%ld,\"pss_kb\":%ld,\"cpu_ns\":%" PRIu64 "},"
        "\"other\":{\"processes\":%d,\"rss_kb\":%ld,\"pss_kb\":%ld,\"cpu_ns\":%" PRIu64 ",\"root_rss_kb\":%ld}}",
        n, mine.processes - own.processes, mine.rss_kb - own.rss_kb, mine.pss_kb - own.pss_kb, mine.cpu_ns - own.cpu_ns,
        other.processes, other.rss_kb, other.pss_kb, other.cpu_ns, root.rss_kb);
}

static cpu_set_t cores_of(double core) {
    cpu_set_t cores = everywhere;
    if (core >= 0) {
        CPU_ZERO(&cores);
        CPU_SET((size_t)core, &cores);
    }
    return cores;
}

static void place(const char *order) {
    pid_t pid = (pid_t)option(order, "pid", 0);
    cpu_set_t client = cores_of(option(order, "client", -1));
    target_cores = cores_of(option(order, "target", -1));
    processes all = all_processes();
    tree_place(&all, getpid(), &target_cores);
    if (pid) tree_place(&all, pid, &target_cores);
    free(all.at);
    int failed = sched_setaffinity(0, sizeof client, &client);
    say("{\"ok\":%s}", failed ? "false" : "true");
}

int main(int argc, char **argv) {
    int n = 1, opt;
    while ((opt = getopt(argc, argv, "+n:e:t:T:u:")) != -1) {
        if (opt == 'n') n = atoi(optarg);
        else if (opt == 'e') stderr_path = optarg;
        else if (opt == 't') patience = atof(optarg);
        else if (opt == 'T') tool = optarg;
        else if (opt != 'u' || sscanf(optarg, "http://127.0.0.1:%d%199s", &port, path) != 2) return 64;
    }
    if ((optind >= argc) != (port > 0) || n < 1) {
        fputs("usage: load [-n N] [-e STDERR_FILE] [-t SECONDS] [-T TOOL] -- COMMAND [ARG...]\n"
              "       load [-n N] [-t SECONDS] [-T TOOL] -u http://127.0.0.1:PORT/PATH\n",
              stderr);
        return 64;
    }
    command = argv + optind;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    sched_getaffinity(0, sizeof everywhere, &everywhere);
    target_cores = everywhere;
    conn *all = need(calloc((size_t)n, sizeof *all));
    for (int i = 0; i < n; i++) spawn(&all[i], i);
    bool up = bring_up(all, n, 3);
    say("{\"ok\":%s,\"count\":%d,\"tools\":%d,\"error\":\"%s\"}", up ? "true" : "false", n, all[0].tools, error_sample);
    char order[512];
    while (up && fgets(order, sizeof order, stdin)) {
        order[strcspn(order, "\n")] = 0;
        if (strncmp(order, "window", 6) == 0) {
            plan p = {.seconds = option(order, "seconds", 1),
                      .warm = option(order, "warm", 0.1),
                      .rate = port ? 0 : option(order, "rate", 0),
                      .size = (size_t)option(order, "size", 300),
                      .k = port ? 1 : (int)option(order, "k", 1),
                      .poisson = !strstr(order, "spacing=fixed")};
            run_window(all, n, p);
        } else if (strcmp(order, "start") == 0) start_one(n);
        else if (strncmp(order, "probe ", 6) == 0) probe(&all[0], order + 6);
        else if (strncmp(order, "usage", 5) == 0) report_usage(n, order);
        else if (strncmp(order, "place", 5) == 0) place(order);
        else if (strcmp(order, "quit") == 0) break;
        else say("{\"error\":\"unknown order\"}");
    }
    for (int i = 0; i < n && !port; i++) { /* all at once, then one by one */
        if (all[i].to >= 0) close(all[i].to);
        all[i].to = -1;
    }
    for (int i = 0; i < n; i++) reap(&all[i]);
    return up ? 0 : 1;
}
