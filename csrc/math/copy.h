/* K2: copies of what is not read again soon. */
#ifndef PC_COPY_H
#define PC_COPY_H

#include <stddef.h>

/* memcpy past the caches: the copy displaces nothing there, and its lines are not read before they are written. */
void pc_copy_past_cache(void *to, const void *from, size_t len_bytes);

#endif
