/* Runs a range of simulated schedules: first seed, how many, most peers, operations. For builds with sanitizers. */
#include "pccl.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const uint64_t first = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10);
    for (uint64_t seed = first; seed < first + count; seed++) {
        const pcclSimOptions_t options = {
            .seed = seed,
            .peers_min = 2,
            .peers_max = (uint32_t)strtoul(argv[3], NULL, 10),
            .ops = (uint32_t)strtoul(argv[4], NULL, 10),
            .faults = true,
            .io_threads = seed % 2 == 1,
        };
        pcclSimReport_t report;
        if (pcclSimRun(&options, &report) != pcclSuccess) return 2;
        if (report.ok) continue;
        (void)fprintf(stderr, "seed %llu: %s\n", (unsigned long long)seed, report.verdict);
        return 1;
    }
    (void)printf("%llu schedules\n", (unsigned long long)count);
    return 0;
}
