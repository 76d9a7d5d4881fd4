/* Counts the calls of the C library that look at or change files below one directory, over all threads of a process,
 * and makes one of them fail. Preloaded into the process that is tested; tests/prove/faults/shim.py builds and arms it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { LOOK = 1, OPEN = 2, READ = 4, NAME = 8, WRITE = 16, SYNC = 32, CLOSE = 64, LOCK = 128, MOVE = 256 };
enum action { KILL = 1, CUT_POWER, FAIL, SHORTEN };

static char root[PATH_MAX];
static char failed[PATH_MAX + 64];
static int kinds, action, code, disk;
static long failing;
static atomic_int armed;
static atomic_long calls;

/* The calls of these kinds are counted from now on. `failing` is the number of the one that fails, from 1. */
void faults_arm(const char *directory, int of_kinds, long number, int what, int error, int descriptor) {
    snprintf(root, sizeof root, "%s", directory);
    failed[0] = 0;
    kinds = of_kinds, failing = number, action = what, code = error, disk = descriptor;
    atomic_store(&calls, 0);
    atomic_store(&armed, 1);
}

void faults_disarm(void) { atomic_store(&armed, 0); }

/* The name of the call that failed, and its file; empty if none has. */
const char *faults_failed(void) { return failed; }

static int is_below(const char *path) {
    size_t length = strlen(root);
    return strncmp(path, root, length) == 0 && (path[length] == 0 || path[length] == '/');
}

static int read_link(const char *path, char *target) {
    long length = syscall(SYS_readlink, path, target, PATH_MAX - 1);
    target[length < 0 ? 0 : length] = 0;
    return length >= 0;
}

static int descriptor_path(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    return read_link(link, path);
}

static void absolute_path(int directory, const char *path, char *result) {
    char base[PATH_MAX];
    int number;
    result[0] = 0;
    if (path == NULL || path[0] == 0)
        descriptor_path(directory, result);
    else if (sscanf(path, "/proc/self/fd/%d", &number) == 1)
        descriptor_path(number, result);
    else if (path[0] == '/')
        snprintf(result, PATH_MAX, "%s", path);
    else if (directory == AT_FDCWD ? read_link("/proc/self/cwd", base) : descriptor_path(directory, base))
        if (snprintf(result, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
            result[0] = 0;
}

/* Returns whether this call is the one that fails. Does not return if it ends the process. */
static int fails(const char *name, int kind, int directory, const char *path) {
    if (!atomic_load(&armed) || !(kinds & kind))
        return 0;
    char where[PATH_MAX];
    int saved = errno;
    absolute_path(directory, path, where);
    errno = saved;
    if (!is_below(where) || atomic_fetch_add(&calls, 1) + 1 != failing)
        return 0;
    snprintf(failed, sizeof failed, "%s %s", name, where);
    if (action == KILL || action == CUT_POWER) {
        int without_flushing = 2; /* FS_IOC_SHUTDOWN with FS_SHUTDOWN_FLAGS_NOLOGFLUSH */
        if (action == CUT_POWER && syscall(SYS_ioctl, disk, 0x8004587dul, &without_flushing))
            _exit(99); /* the power is still on */
        syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
        for (;;)
            pause();
    }
    return action == FAIL || action == SHORTEN;
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    if (function == NULL)
        function = dlvsym(RTLD_NEXT, name, "GLIBC_2.2.5"); /* what only programs of old compilers call */
    if (function == NULL)
        abort();
    return function;
}

/* A function that returns `failure` and sets errno if it fails. A call that has failed has done nothing. */
#define CALL(result, failure, name, kind, directory, path, parameters, arguments)                                      \
    result name parameters {                                                                                           \
        static __typeof__(&name) next;                                                                                 \
        if (next == NULL)                                                                                              \
            next = REAL(name);                                                                                         \
        if (fails(#name, kind, directory, path) && action == FAIL) {                                                   \
            errno = code;                                                                                              \
            return failure;                                                                                            \
        }                                                                                                              \
        return next arguments;                                                                                         \
    }

#define LOOKS_AT(name, buffer)                                                                                         \
    CALL(int, -1, name, LOOK, AT_FDCWD, path, (const char *path, struct buffer *b), (path, b))
LOOKS_AT(stat, stat)
LOOKS_AT(stat64, stat64)
LOOKS_AT(lstat, stat)
LOOKS_AT(lstat64, stat64)
LOOKS_AT(statvfs, statvfs)
LOOKS_AT(statvfs64, statvfs64)
CALL(int, -1, fstat, LOOK, fd, NULL, (int fd, struct stat *b), (fd, b))
CALL(int, -1, fstat64, LOOK, fd, NULL, (int fd, struct stat64 *b), (fd, b))
CALL(int, -1, fstatat, LOOK, d, path, (int d, const char *path, struct stat *b, int f), (d, path, b, f))
CALL(int, -1, fstatat64, LOOK, d, path, (int d, const char *path, struct stat64 *b, int f), (d, path, b, f))
CALL(int, -1, statx, LOOK, d, path, (int d, const char *path, int f, unsigned m, struct statx *b), (d, path, f, m, b))
CALL(int, -1, __xstat, LOOK, AT_FDCWD, path, (int v, const char *path, struct stat *b), (v, path, b))
CALL(int, -1, __xstat64, LOOK, AT_FDCWD, path, (int v, const char *path, struct stat64 *b), (v, path, b))
CALL(int, -1, __lxstat, LOOK, AT_FDCWD, path, (int v, const char *path, struct stat *b), (v, path, b))
CALL(int, -1, __lxstat64, LOOK, AT_FDCWD, path, (int v, const char *path, struct stat64 *b), (v, path, b))
CALL(int, -1, __fxstat, LOOK, fd, NULL, (int v, int fd, struct stat *b), (v, fd, b))
CALL(int, -1, __fxstat64, LOOK, fd, NULL, (int v, int fd, struct stat64 *b), (v, fd, b))
CALL(int, -1, __fxstatat, LOOK, d, path, (int v, int d, const char *path, struct stat *b, int f), (v, d, path, b, f))
CALL(int, -1, __fxstatat64, LOOK, d, path, (int v, int d, const char *path, struct stat64 *b, int f),
     (v, d, path, b, f))
CALL(int, -1, access, LOOK, AT_FDCWD, path, (const char *path, int m), (path, m))
CALL(int, -1, faccessat, LOOK, d, path, (int d, const char *path, int m, int f), (d, path, m, f))
CALL(ssize_t, -1, readlink, LOOK, AT_FDCWD, path, (const char *path, char *b, size_t n), (path, b, n))
CALL(DIR *, NULL, opendir, OPEN, AT_FDCWD, path, (const char *path), (path))
CALL(DIR *, NULL, fdopendir, OPEN, fd, NULL, (int fd), (fd))
CALL(struct dirent64 *, NULL, readdir64, READ, dirfd(d), NULL, (DIR * d), (d))
CALL(struct dirent *, NULL, readdir, READ, dirfd(d), NULL, (DIR * d), (d))

CALL(int, -1, mkdir, NAME, AT_FDCWD, path, (const char *path, mode_t m), (path, m))
CALL(int, -1, mkdirat, NAME, d, path, (int d, const char *path, mode_t m), (d, path, m))
CALL(int, -1, rmdir, NAME, AT_FDCWD, path, (const char *path), (path))
CALL(int, -1, unlink, NAME, AT_FDCWD, path, (const char *path), (path))
CALL(int, -1, unlinkat, NAME, d, path, (int d, const char *path, int f), (d, path, f))
CALL(int, -1, remove, NAME, AT_FDCWD, path, (const char *path), (path))
CALL(int, -1, rename, NAME, AT_FDCWD, path, (const char *path, const char *to), (path, to))
CALL(int, -1, renameat, NAME, d, path, (int d, const char *path, int e, const char *to), (d, path, e, to))
CALL(int, -1, renameat2, NAME, d, path, (int d, const char *path, int e, const char *to, unsigned f),
     (d, path, e, to, f))
CALL(int, -1, link, NAME, AT_FDCWD, path, (const char *path, const char *to), (path, to))
CALL(int, -1, linkat, NAME, d, path, (int d, const char *path, int e, const char *to, int f), (d, path, e, to, f))
CALL(int, -1, symlink, NAME, AT_FDCWD, path, (const char *to, const char *path), (to, path))
CALL(int, -1, chmod, NAME, AT_FDCWD, path, (const char *path, mode_t m), (path, m))
CALL(int, -1, utimensat, NAME, d, path, (int d, const char *path, const struct timespec t[2], int f), (d, path, t, f))

CALL(int, -1, fsync, SYNC, fd, NULL, (int fd), (fd))
CALL(int, -1, fdatasync, SYNC, fd, NULL, (int fd), (fd))
CALL(int, -1, ftruncate, WRITE, fd, NULL, (int fd, off_t n), (fd, n))
CALL(int, -1, ftruncate64, WRITE, fd, NULL, (int fd, off64_t n), (fd, n))
CALL(int, -1, flock, LOCK, fd, NULL, (int fd, int o), (fd, o))
CALL(int, code, posix_fallocate, WRITE, fd, NULL, (int fd, off_t o, off_t n), (fd, o, n))
CALL(int, code, posix_fallocate64, WRITE, fd, NULL, (int fd, off64_t o, off64_t n), (fd, o, n))
CALL(void *, MAP_FAILED, mmap, READ, fd, NULL, (void *a, size_t n, int p, int f, int fd, off_t o), (a, n, p, f, fd, o))
CALL(void *, MAP_FAILED, mmap64, READ, fd, NULL, (void *a, size_t n, int p, int f, int fd, off64_t o),
     (a, n, p, f, fd, o))
CALL(FILE *, NULL, fopen, OPEN, AT_FDCWD, path, (const char *path, const char *m), (path, m))
CALL(FILE *, NULL, fopen64, OPEN, AT_FDCWD, path, (const char *path, const char *m), (path, m))
CALL(ssize_t, -1, copy_file_range, WRITE, to, NULL, (int fd, off64_t *a, int to, off64_t *b, size_t n, unsigned f),
     (fd, a, to, b, n, f))
CALL(ssize_t, -1, sendfile64, WRITE, to, NULL, (int to, int fd, off64_t *o, size_t n), (to, fd, o, n))

/* As in Linux, a descriptor is closed also if `close` fails. */
int close(int fd) {
    int error = fails("close", CLOSE, fd, NULL) && action == FAIL;
    int result = REAL(close)(fd);
    if (error)
        errno = code;
    return error ? -1 : result;
}

/* Locks of parts of files. Other commands are not counted: they fail only for wrong arguments. */
#define CONTROLS(name)                                                                                                 \
    int name(int fd, int command, ...) {                                                                               \
        va_list list;                                                                                                  \
        va_start(list, command);                                                                                       \
        void *argument = va_arg(list, void *);                                                                         \
        va_end(list);                                                                                                  \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;    \
        if (locks && fails(#name, LOCK, fd, NULL) && action == FAIL) {                                                 \
            errno = code;                                                                                              \
            return -1;                                                                                                 \
        }                                                                                                              \
        return REAL(name)(fd, command, argument);                                                                      \
    }
CONTROLS(fcntl)
CONTROLS(fcntl64)

#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;                                      \
        va_end(list);                                                                                                  \
        if (fails(#name, OPEN | (flags & O_CREAT ? NAME : 0), AT_FDCWD, path) && action == FAIL) {                     \
            errno = code;                                                                                              \
            return -1;                                                                                                 \
        }                                                                                                              \
        return REAL(name)(path, flags, mode);                                                                          \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                                                 \
    int name(int directory, const char *path, int flags, ...) {                                                        \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;                                      \
        va_end(list);                                                                                                  \
        if (fails(#name, OPEN | (flags & O_CREAT ? NAME : 0), directory, path) && action == FAIL) {                    \
            errno = code;                                                                                              \
            return -1;                                                                                                 \
        }                                                                                                              \
        return REAL(name)(directory, path, flags, mode);                                                               \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

/* Reads and writes of one buffer, and of several. A shortened one moves half of its bytes. */
#define MOVES(name, kind, buffer, offset_parameter, offset)                                                            \
    ssize_t name(int fd, buffer data, size_t count offset_parameter) {                                                 \
        if (fails(#name, kind | MOVE, fd, NULL)) {                                                                     \
            if (action == FAIL) {                                                                                      \
                errno = code;                                                                                          \
                return -1;                                                                                             \
            }                                                                                                          \
            count = (count + 1) / 2;                                                                                   \
        }                                                                                                              \
        return REAL(name)(fd, data, count offset);                                                                     \
    }
#define COMMA ,
MOVES(read, READ, void *, , )
MOVES(pread, READ, void *, COMMA off_t o, COMMA o)
MOVES(pread64, READ, void *, COMMA off64_t o, COMMA o)
MOVES(write, WRITE, const void *, , )
MOVES(pwrite, WRITE, const void *, COMMA off_t o, COMMA o)
MOVES(pwrite64, WRITE, const void *, COMMA off64_t o, COMMA o)

#define MOVES_VECTOR(name, kind, more_parameters, more)                                                                \
    ssize_t name(int fd, const struct iovec *vector, int count more_parameters) {                                      \
        struct iovec half;                                                                                             \
        if (fails(#name, kind | MOVE, fd, NULL)) {                                                                     \
            if (action == FAIL) {                                                                                      \
                errno = code;                                                                                          \
                return -1;                                                                                             \
            }                                                                                                          \
            half = vector[0];                                                                                          \
            half.iov_len = (half.iov_len + 1) / 2;                                                                     \
            vector = &half, count = 1;                                                                                 \
        }                                                                                                              \
        return REAL(name)(fd, vector, count more);                                                                     \
    }
MOVES_VECTOR(readv, READ, , )
MOVES_VECTOR(preadv, READ, COMMA off_t o, COMMA o)
MOVES_VECTOR(preadv64, READ, COMMA off64_t o, COMMA o)
MOVES_VECTOR(preadv64v2, READ, COMMA off64_t o COMMA int f, COMMA o COMMA f)
MOVES_VECTOR(writev, WRITE, , )
MOVES_VECTOR(pwritev, WRITE, COMMA off_t o, COMMA o)
MOVES_VECTOR(pwritev64, WRITE, COMMA off64_t o, COMMA o)
MOVES_VECTOR(pwritev64v2, WRITE, COMMA off64_t o COMMA int f, COMMA o COMMA f)
