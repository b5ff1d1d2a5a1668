/* Preloaded into a node's programs: lets writes below its data directory fail or dawdle while a file says so. In the directory
 * that CHAOS_DISK names: `full` (ENOSPC), `readonly` (EROFS), `slow` (each fsync takes as long as the file's text says,
 * in milliseconds), `hangs` (no call returns while it is there). Nothing is simulated but the answers of the system calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int told(const char *what) {
    const char *dir = getenv("CHAOS_DISK");
    char path[PATH_MAX];
    int saved = errno, there;
    if (!dir) return 0;
    snprintf(path, sizeof path, "%s/%s", dir, what);
    there = access(path, F_OK) == 0;
    errno = saved;
    return there;
}

/* Whether a path is in the data directory, which is `data` beside the files that tell. */
static int inside(const char *path) {
    const char *dir = getenv("CHAOS_DISK");
    char data[PATH_MAX];
    int length;
    if (!dir) return 0;
    length = snprintf(data, sizeof data, "%s/data", dir);
    if (path[0] != '/') {
        char here[PATH_MAX];
        return getcwd(here, sizeof here) && strncmp(here, data, length) == 0;
    }
    return strncmp(path, data, length) == 0;
}

static int ours(int fd) {
    char link[64], path[PATH_MAX];
    ssize_t n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return path[0] == '/' && inside(path);
}

/* As a network file system does whose server is gone; but a kill gets through. */
static void hang(void) {
    while (told("hangs")) usleep(20000);
}

/* 0: go on; otherwise the error. */
static int verdict(int fd) {
    if (told("hangs") && ours(fd)) hang();
    if (told("full")) return ours(fd) ? ENOSPC : 0;
    if (told("readonly")) return ours(fd) ? EROFS : 0;
    return 0;
}

#define REFUSE(fd) do { int e = verdict(fd); if (e) { errno = e; return -1; } } while (0)

ssize_t write(int fd, const void *b, size_t n) { REFUSE(fd); return REAL(write)(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REFUSE(fd); return REAL(pwrite)(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REFUSE(fd); return REAL(pwrite64)(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { REFUSE(fd); return REAL(writev)(fd, v, n); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o) { REFUSE(fd); return REAL(pwritev)(fd, v, n, o); }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t o) { REFUSE(fd); return REAL(pwritev64)(fd, v, n, o); }
int posix_fallocate(int fd, off_t o, off_t n) { int e = verdict(fd); return e ? e : REAL(posix_fallocate)(fd, o, n); }
int posix_fallocate64(int fd, off64_t o, off64_t n) { int e = verdict(fd); return e ? e : REAL(posix_fallocate64)(fd, o, n); }

static void dawdle(void) {
    const char *dir = getenv("CHAOS_DISK");
    char path[PATH_MAX], text[16] = "";
    int fd;
    if (!told("slow")) return;
    snprintf(path, sizeof path, "%s/slow", dir);
    fd = REAL(open)(path, O_RDONLY);
    if (fd < 0) return;
    if (read(fd, text, sizeof text - 1) > 0) usleep(atoi(text) * 1000);
    close(fd);
}

int fsync(int fd) { if (ours(fd)) { hang(); dawdle(); } return REAL(fsync)(fd); }
int fdatasync(int fd) { if (ours(fd)) { hang(); dawdle(); } return REAL(fdatasync)(fd); }

static int opened(const char *path, int flags) {
    if (told("hangs") && inside(path)) hang();
    if (!(flags & (O_WRONLY | O_RDWR | O_CREAT))) return 0;
    if (told("readonly") && inside(path)) return EROFS;
    if ((flags & O_CREAT) && told("full") && inside(path) && access(path, F_OK) != 0) return ENOSPC;
    return 0;
}

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list rest; int mode, e = opened(path, flags); \
    va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); \
    if (e) { errno = e; return -1; } \
    return REAL(name)(path, flags, mode); }
OPEN(open)
OPEN(open64)
