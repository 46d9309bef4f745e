/* System calls that fail on demand, for the programs that are started with this in LD_PRELOAD.
 *
 * AEGIS_FAULTS names a file of rules that both sides map, so that a test changes them while the program runs. A rule
 * concerns the files whose path has its text in it; it lets `skip` calls through and then lets `count` fail.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, MAKE = 4 };
enum { SHORT = 0, KILL = -1 };

struct rule {
    char text[48];
    int32_t what;  /* WRITE | SYNC | MAKE; 0 where the rule is not used */
    int32_t error; /* an errno, SHORT (half of it is written) or KILL */
    int64_t skip, count, hits;
};
#define RULES 8

static struct rule *rules;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("AEGIS_FAULTS");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(NULL, RULES * sizeof(struct rule), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED)
        rules = at;
    close(fd);
}

/* The error of the first rule that applies, 1 << 30 where none does. */
static int asked(int what, const char *path) {
    for (struct rule *rule = rules; rules && rule < rules + RULES; rule++) {
        if (!(__atomic_load_n(&rule->what, __ATOMIC_ACQUIRE) & what) || !strstr(path, rule->text))
            continue;
        if (__atomic_fetch_sub(&rule->skip, 1, __ATOMIC_RELAXED) > 0)
            continue;
        if (__atomic_fetch_sub(&rule->count, 1, __ATOMIC_RELAXED) <= 0)
            continue;
        __atomic_fetch_add(&rule->hits, 1, __ATOMIC_RELAXED);
        if (rule->error == KILL)
            kill(getpid(), SIGKILL);
        return rule->error;
    }
    return 1 << 30;
}

static int of_fd(int what, int fd) {
    char link[32], path[512];
    if (!rules)
        return 1 << 30;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (size <= 0)
        return 1 << 30;
    path[size] = 0;
    return asked(what, path);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    int error = of_fd(WRITE, fd);
    if (error == SHORT && size > 1)
        return real(fd, data, size / 2, at);
    if (error > 0 && error < 1 << 30)
        return errno = error, -1;
    return real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    int error = of_fd(WRITE, fd);
    if (error == SHORT && size > 1)
        return real(fd, data, size / 2, at);
    if (error > 0 && error < 1 << 30)
        return errno = error, -1;
    return real(fd, data, size, at);
}

int fsync(int fd) {
    REAL(fsync);
    int error = of_fd(SYNC, fd);
    if (error > 0 && error < 1 << 30)
        return errno = error, -1;
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    int error = of_fd(SYNC, fd);
    if (error > 0 && error < 1 << 30)
        return errno = error, -1;
    return real(fd);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    int error = of_fd(MAKE, fd);
    if (error > 0 && error < 1 << 30)
        return errno = error, -1;
    return real(fd, size);
}
