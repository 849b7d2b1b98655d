/* K2: copies for which memcpy is not the best. Pure. */
#ifndef PC_COPY_H
#define PC_COPY_H

#include <stddef.h>

/* memcpy past the caches: the copy displaces nothing there, and its lines are not read before they are written. */
void pc_copy_past_cache(void *to, const void *from, size_t len_bytes);

/* memcpy at the same speed however the two places lie to each other. */
void pc_copy_anyhow(void *to, const void *from, size_t len_bytes);

#endif
