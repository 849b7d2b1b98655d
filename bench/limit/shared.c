/*
 * The least that an all-reduce in memory shared by all needs, to compare with: everybody's buffer is mapped by everybody,
 * each rank sums its part of all buffers, block by block, and writes it to all. What it takes is what main memory takes.
 *
 *     shared RANK SIZE PORT      the port only names the memory
 *
 * Speaks the lines of peer.py: "all_reduce BYTES ITERATIONS" -> seconds.
 */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK_ELEMS = (64 << 10) / 4 };
static const size_t CAPACITY = (size_t)512 << 20; /* of a rank's buffer: a page that nobody writes takes no memory */

struct meeting {
    pthread_barrier_t barrier;
    int ready;
};

static int rank, size;
static struct meeting *meeting;
static char *buffers;

static void meet(void) {
    (void)pthread_barrier_wait(&meeting->barrier);
}

static void map_memory(const char *name) {
    const size_t total = sizeof *meeting + (size_t)size * CAPACITY;
    int fd = shm_open(name, O_RDWR | (rank == 0 ? O_CREAT | O_EXCL : 0), 0600);
    struct stat found = {0};
    while (fd < 0 && rank > 0 && errno == ENOENT) {
        usleep(1000);
        fd = shm_open(name, O_RDWR, 0600);
    }
    if (fd < 0) die(name);
    if (rank == 0 && ftruncate(fd, (off_t)total) != 0) die("ftruncate");
    while (fstat(fd, &found) == 0 && (size_t)found.st_size < total) usleep(1000);
    buffers = mmap(NULL, (size_t)size * CAPACITY + sizeof *meeting, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (buffers == MAP_FAILED) die("mmap");
    close(fd);
    meeting = (struct meeting *)(void *)(buffers + (size_t)size * CAPACITY);
    if (rank == 0) {
        pthread_barrierattr_t shared;
        pthread_barrierattr_init(&shared);
        pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
        if (pthread_barrier_init(&meeting->barrier, &shared, (unsigned)size) != 0) die("barrier");
        __atomic_store_n(&meeting->ready, 1, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&meeting->ready, __ATOMIC_ACQUIRE) == 0) usleep(1000);
    meet();
    if (rank == 0) (void)shm_unlink(name);
}

static float *part_of(int owner, size_t elem) {
    return (float *)(void *)(buffers + (size_t)owner * CAPACITY) + elem;
}

static void all_reduce(size_t count) {
    const size_t first = count * (size_t)rank / (size_t)size, end = count * (size_t)(rank + 1) / (size_t)size;
    float sum[BLOCK_ELEMS];
    meet();
    for (size_t at = first; at < end; at += BLOCK_ELEMS) {
        const size_t elems = end - at < BLOCK_ELEMS ? end - at : BLOCK_ELEMS;
        memcpy(sum, part_of(0, at), 4 * elems);
        for (int other = 1; other < size; other++) {
            const float *in = part_of(other, at);
            for (size_t i = 0; i < elems; i++) sum[i] += in[i];
        }
        for (int other = 0; other < size; other++) memcpy(part_of(other, at), sum, 4 * elems);
    }
    meet();
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    rank = atoi(argv[1]);
    size = atoi(argv[2]);
    char name[64], op[32];
    (void)snprintf(name, sizeof name, "/pccl-limit-%s", argv[3]);
    map_memory(name);
    size_t bytes = 0;
    int iterations = 0;
    printf("ready\n");
    fflush(stdout);
    while (scanf("%31s %zu %d", op, &bytes, &iterations) == 3) {
        if (strcmp(op, "all_reduce") != 0 || bytes > CAPACITY) {
            printf("error only all_reduce of up to %zu bytes\n", CAPACITY);
            fflush(stdout);
            continue;
        }
        memset(part_of(rank, 0), 0, bytes);
        all_reduce(bytes / 4);
        const double start = now();
        for (int i = 0; i < iterations; i++) all_reduce(bytes / 4);
        printf("%.9f\n", now() - start);
        fflush(stdout);
    }
    return 0;
}
