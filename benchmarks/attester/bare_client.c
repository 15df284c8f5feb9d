/*
 * The least that a quote through configfs-tsm takes: the same system calls as attestkit's, nothing
 * else. It makes N quotes and prints the nanoseconds of each.
 *
 * cc -O2 -o bare_client bare_client.c; ./bare_client REPORT_FOLDER N
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PIECE (32 << 10)

static char folder[4096];
static unsigned char blob[16 << 20];

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int at(const char *name, int flags)
{
    char path[8192];
    int fd;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        fail(path);
    return fd;
}

/* Read a file to its end. */
static size_t take(const char *name)
{
    size_t size = 0;
    ssize_t got;
    int fd = at(name, O_RDONLY);
    while ((got = read(fd, blob + size, PIECE)) > 0)
        size += (size_t)got;
    if (got < 0)
        fail(name);
    close(fd);
    return size;
}

static size_t quote(const char *reports, int number)
{
    unsigned char report_data[64] = {1};
    size_t size;
    int fd;
    snprintf(folder, sizeof folder, "%s/bare-%d-%d", reports, (int)getpid(), number);
    if (mkdir(folder, 0700))
        fail(folder);
    take("provider");
    take("generation");
    fd = at("inblob", O_WRONLY);
    if (write(fd, report_data, sizeof report_data) != sizeof report_data || close(fd))
        fail("inblob");
    size = take("outblob");
    take("generation");
    if (rmdir(folder))
        fail(folder);
    return size;
}

int main(int argc, char **argv)
{
    int n = argc == 3 ? atoi(argv[2]) : 0;
    for (int i = 0; i < n; i++) {
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        if (quote(argv[1], i) < 1020) {
            fputs("no quote\n", stderr);
            return 1;
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%lld\n",
               (end.tv_sec - start.tv_sec) * 1000000000LL + (end.tv_nsec - start.tv_nsec));
    }
    return 0;
}
