/* Checked memory helpers. They set nothing but their results; the caller reports failure. */
#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

void *pc_calloc(size_t count, size_t size) {
    return calloc(count == 0 ? 1 : count, size == 0 ? 1 : size);
}

bool pc_grow(void **items, size_t *capacity, size_t want, size_t size) {
    if (want <= *capacity) return true;
    size_t doubled = *capacity < 8 ? 8 : *capacity * 2, bytes = 0;
    size_t grown = doubled < want ? want : doubled;
    if (pc_mul_overflows(grown, size, &bytes)) return false;
    void *moved = realloc(*items, bytes);
    if (moved == NULL) return false;
    memset((char *)moved + *capacity * size, 0, bytes - *capacity * size);
    *items = moved;
    *capacity = grown;
    return true;
}
