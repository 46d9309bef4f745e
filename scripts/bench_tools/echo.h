/* What both echo servers answer, over pipes and over HTTP: as little work per call as can be.
 *
 * initialize, ping, tools/list (ten tools) and tools/call; `echo` returns its text argument. The id comes back as it was
 * received. Notifications and responses are ignored. Answers gather in `out`, one line each. */
#ifndef AEGIS_BENCH_ECHO_H
#define AEGIS_BENCH_ECHO_H

#include <stdio.h>
#include <stdlib.h>

#include "scan.h"

static struct {
    char *at;
    size_t len, cap;
} out;

static void put(const char *text, size_t len) {
    if (out.len + len > out.cap) {
        out.cap = (out.len + len) * 2;
        out.at = realloc(out.at, out.cap);
        if (!out.at) abort();
    }
    memcpy(out.at + out.len, text, len);
    out.len += len;
}

static void puts_raw(const char *text) { put(text, strlen(text)); }

static void head(span id) {
    puts_raw("{\"jsonrpc\":\"2.0\",\"id\":");
    put(id.at, id.len);
}

static void fail(span id, int code, const char *message) {
    char text[160];
    head(id);
    snprintf(text, sizeof text, ",\"error\":{\"code\":%d,\"message\":\"%s\"}}\n", code, message);
    puts_raw(text);
}

static const char *const TOOLS[] = {"echo",        "read_item",  "list_items",    "search_items", "count_items",
                                    "create_item", "write_note", "publish_draft", "delete_item",  "danger_reset"};
enum { TOOL_COUNT = sizeof TOOLS / sizeof *TOOLS };

static void list_tools(span id) {
    head(id);
    puts_raw(",\"result\":{\"tools\":[");
    for (int i = 0; i < TOOL_COUNT; i++) {
        char text[512];
        snprintf(text, sizeof text,
                 "%s{\"name\":\"%s\",\"description\":\"The %s tool of the bench server.\",\"inputSchema\":"
                 "{\"type\":\"object\",\"properties\":{\"text\":{\"type\":\"string\",\"description\":\"any text\"}},"
                 "\"required\":[\"text\"]}}",
                 i ? "," : "", TOOLS[i], TOOLS[i]);
        puts_raw(text);
    }
    puts_raw("]}}\n");
}

static void call_tool(span id, span params) {
    span name = scan_find(params, "name");
    if (!name.at || name.len < 2 || *name.at != '"') {
        fail(id, -32602, "tools/call needs a name");
        return;
    }
    name = (span){name.at + 1, name.len - 2};
    if (span_is(name, "echo")) {
        span text = scan_find(scan_find(params, "arguments"), "text");
        if (!text.at || *text.at != '"') {
            fail(id, -32602, "echo needs the argument text, a string");
            return;
        }
        head(id);
        puts_raw(",\"result\":{\"content\":[{\"type\":\"text\",\"text\":");
        put(text.at, text.len);
        puts_raw("}]}}\n");
        return;
    }
    for (int i = 1; i < TOOL_COUNT; i++) {
        if (span_is(name, TOOLS[i])) {
            head(id);
            puts_raw(",\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"done\"}]}}\n");
            return;
        }
    }
    fail(id, -32602, "no such tool");
}

static void initialize(span id, span params) {
    span version = scan_find(params, "protocolVersion");
    if (!version.at || *version.at != '"') {
        fail(id, -32602, "initialize needs a protocolVersion");
        return;
    }
    head(id);
    puts_raw(",\"result\":{\"protocolVersion\":");
    put(version.at, version.len);
    puts_raw(",\"capabilities\":{\"tools\":{}},\"serverInfo\":{\"name\":\"bench-echo\",\"version\":\"1\"}}}\n");
}

static void answer(const char *line, size_t len) {
    static const span NOTHING = {"null", 4};
    const char *end = line + len, *cursor = scan_space(line, end);
    span key, value, id = {0}, method = {0}, params = {0};
    int more;
    if (cursor == end) return;
    if (*cursor != '{') {
        fail(NOTHING, -32700, "not a JSON object");
        return;
    }
    while ((more = scan_member(&cursor, end, &key, &value)) == 1) {
        if (span_is(key, "id")) id = value;
        else if (span_is(key, "method")) method = value;
        else if (span_is(key, "params")) params = value;
    }
    if (more < 0 || scan_space(cursor, end) != end) {
        fail(NOTHING, -32700, "not JSON");
        return;
    }
    if (!method.at || !id.at) return; /* a response or a notification */
    if (*id.at != '"' && *id.at != '-' && (*id.at < '0' || *id.at > '9')) {
        fail(NOTHING, -32600, "an id is a string or an integer");
        return;
    }
    if (span_is(method, "\"tools/call\"")) call_tool(id, params);
    else if (span_is(method, "\"tools/list\"")) list_tools(id);
    else if (span_is(method, "\"initialize\"")) initialize(id, params);
    else if (span_is(method, "\"ping\"")) {
        head(id);
        puts_raw(",\"result\":{}}\n");
    } else fail(id, -32601, "method not found");
}

#endif
