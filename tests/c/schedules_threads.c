/*
 * Schedules on several threads at once, for the thread sanitizer: worlds share nothing but what the library shares
 * between communicators (log, SIMD dispatch, tables), and that must be free of races.
 */
#include "pccl.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 3 };

struct range {
    uint64_t first, count;
    int broken;
};

static void *run(void *argument) {
    struct range *range = argument;
    for (uint64_t seed = range->first; seed < range->first + range->count; seed++) {
        const pcclSimOptions_t options = {
            .seed = seed, .peers_min = 2, .peers_max = 5, .ops = 8, .faults = true, .trace = seed % 4 == 0};
        pcclSimReport_t report;
        range->broken |= pcclSimRun(&options, &report) != pcclSuccess || !report.ok;
        free(report.log);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    const uint64_t count = strtoull(argv[1], NULL, 10);
    pthread_t threads[THREADS];
    struct range ranges[THREADS];
    int broken = 0;
    for (int i = 0; i < THREADS; i++) {
        ranges[i] = (struct range){1 + (uint64_t)i * count, count, 0};
        if (pthread_create(&threads[i], NULL, run, &ranges[i]) != 0) return 2;
    }
    for (int i = 0; i < THREADS; i++) {
        if (pthread_join(threads[i], NULL) != 0) return 2;
        broken |= ranges[i].broken;
    }
    (void)printf("%d threads\n", THREADS);
    return broken;
}
