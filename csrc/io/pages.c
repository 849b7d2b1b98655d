/* Anonymous mappings, aligned so that huge pages fit. Safe from every thread; what is taken is given back with its size. */
#if defined(__APPLE__)
#define _DARWIN_C_SOURCE 1
#else
#define _DEFAULT_SOURCE 1
#endif
#include "io/pages.h"

#include <sys/mman.h>

enum { HUGE_BYTES = 2 << 20 };

static size_t rounded(size_t len_bytes) {
    return (len_bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
}

static void *take(size_t len_bytes) {
    const size_t len = rounded(len_bytes);
    if (len < len_bytes || len > SIZE_MAX - HUGE_BYTES) return NULL;
    uint8_t *mapped = mmap(NULL, len + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return NULL;
    const size_t head = (size_t)(-(uintptr_t)mapped % HUGE_BYTES);
    if (head > 0) (void)munmap(mapped, head);
    if (head < HUGE_BYTES) (void)munmap(mapped + head + len, HUGE_BYTES - head);
#ifdef MADV_HUGEPAGE
    (void)madvise(mapped + head, len, MADV_HUGEPAGE);
#endif
    return mapped + head;
}

static void give(void *data, size_t len_bytes) {
    (void)munmap(data, rounded(len_bytes));
}

const struct pc_memory pc_pages = {take, give};
