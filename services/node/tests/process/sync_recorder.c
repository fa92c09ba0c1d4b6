/* Records which files were synced at which length, and which renames, for the power-cut test. Preloaded into the
 * process under test; it does what it is asked and writes one line an event to $HERALD_TEST_SYNC_LOG. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int log_fd(void) {
    static int fd = -2;
    if (fd == -2) {
        const char *path = getenv("HERALD_TEST_SYNC_LOG");
        fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    }
    return fd;
}

static void record(const char *line) {
    if (log_fd() >= 0 && write(log_fd(), line, strlen(line)) < 0) abort();
}

static int synced(const char *name, int fd) {
    static int (*real_fsync)(int), (*real_fdatasync)(int);
    if (!real_fsync) real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (!real_fdatasync) real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    struct stat before;
    char link[64], path[PATH_MAX], line[PATH_MAX + 64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    /* What was written before the call is what the call makes durable. */
    int known = length > 0 && fstat(fd, &before) == 0;
    int result = strcmp(name, "fsync") == 0 ? real_fsync(fd) : real_fdatasync(fd);
    if (known && result == 0) {
        path[length] = 0;
        snprintf(line, sizeof line, "%s %lld %s\n", S_ISDIR(before.st_mode) ? "directory" : "file",
                 (long long)before.st_size, path);
        record(line);
    }
    return result;
}

int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    static int number;
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    char saved[PATH_MAX], line[3 * PATH_MAX];
    /* The file that is replaced stays reachable, so that the rename can be undone. */
    snprintf(saved, sizeof saved, "%s.before-%d-%d", getenv("HERALD_TEST_SYNC_LOG"), getpid(), __sync_add_and_fetch(&number, 1));
    int had_one = getenv("HERALD_TEST_SYNC_LOG") && link(to, saved) == 0;
    int result = real(from, to);
    if (result == 0) {
        snprintf(line, sizeof line, "rename %s %s\n", had_one ? saved : "-", to);
        record(line);
    }
    return result;
}
