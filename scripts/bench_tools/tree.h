/* What a process and everything below it uses, and which cores all of it may run on, read from /proc. */
#ifndef AEGIS_BENCH_TREE_H
#define AEGIS_BENCH_TREE_H

#include <ctype.h>
#include <dirent.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef struct {
    int processes;
    long rss_kb, pss_kb;
    uint64_t cpu_ns; /* of the threads alive now */
} usage;

typedef struct {
    pid_t pid, parent;
} process;

typedef struct {
    process *at;
    int count;
} processes;

static inline processes all_processes(void) {
    processes all = {NULL, 0};
    int cap = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc))) {
        char path[64], text[512];
        if (!isdigit((unsigned char)entry->d_name[0])) continue;
        snprintf(path, sizeof path, "/proc/%.20s/stat", entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        size_t n = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        text[n] = 0;
        char *after = strrchr(text, ')'); /* the name may hold anything, so count from its end */
        int parent;
        if (!after || sscanf(after + 1, " %*c %d", &parent) != 1) continue;
        if (all.count == cap) {
            cap = cap ? cap * 2 : 256;
            all.at = realloc(all.at, (size_t)cap * sizeof *all.at);
            if (!all.at) abort();
        }
        all.at[all.count++] = (process){(pid_t)atoi(entry->d_name), (pid_t)parent};
    }
    if (proc) closedir(proc);
    return all;
}

static inline int is_below(const processes *all, pid_t pid, pid_t root) {
    for (int hops = 0; pid > 1 && hops < 64; hops++) {
        if (pid == root) return 1;
        int i = 0;
        while (i < all->count && all->at[i].pid != pid) i++;
        if (i == all->count) return 0;
        pid = all->at[i].parent;
    }
    return 0;
}

static inline void add_memory(pid_t pid, usage *sum) {
    char path[64], line[256];
    long kb;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid); /* statm counts in batches and is off by megabytes */
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "Rss: %ld kB", &kb) == 1) sum->rss_kb += kb;
        if (sscanf(line, "Pss: %ld kB", &kb) == 1) sum->pss_kb += kb;
    }
    if (file) fclose(file);
}

/* Calls back for each thread of the process. */
static inline void each_thread(pid_t pid, void (*visit)(pid_t pid, pid_t thread, void *with), void *with) {
    char path[64];
    struct dirent *entry;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    while (tasks && (entry = readdir(tasks)))
        if (isdigit((unsigned char)entry->d_name[0])) visit(pid, (pid_t)atoi(entry->d_name), with);
    if (tasks) closedir(tasks);
}

static inline void add_cpu(pid_t pid, pid_t thread, void *sum) {
    char path[64];
    unsigned long long ns;
    snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid, thread);
    FILE *file = fopen(path, "r");
    if (file && fscanf(file, "%llu", &ns) == 1) ((usage *)sum)->cpu_ns += ns;
    if (file) fclose(file);
}

static inline void set_cores(pid_t pid, pid_t thread, void *cores) {
    (void)pid;
    sched_setaffinity(thread, sizeof(cpu_set_t), cores); /* one that is gone needs no place */
}

static inline usage tree_usage(const processes *all, pid_t root, int with_memory) {
    usage sum = {0, 0, 0, 0};
    for (int i = 0; i < all->count; i++) {
        if (!is_below(all, all->at[i].pid, root)) continue;
        sum.processes++;
        if (with_memory) add_memory(all->at[i].pid, &sum);
        each_thread(all->at[i].pid, add_cpu, &sum);
    }
    return sum;
}

static inline void tree_place(const processes *all, pid_t root, cpu_set_t *cores) {
    for (int i = 0; i < all->count; i++)
        if (is_below(all, all->at[i].pid, root)) each_thread(all->at[i].pid, set_cores, cores);
}

#endif
