/*
 * Past the cache, for undo: what is saved is read only if the operation is aborted. Complete when it returns, also for
 * other threads.
 * Anyhow, for rings of bytes, where the two places are anywhere within their pages: C libraries copy some 10 KiB with
 * `rep movs`, which several processors carry out at a third of its speed or less when the target is up to 31 bytes ahead of
 * the source, counted from the beginning of their pages.
 * Elsewhere than on x86 both are memcpy.
 */
#include "math/copy.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>

enum { LINE_BYTES = 64 };

static void copy_lines(uint8_t *to, const uint8_t *from, size_t lines) {
    for (size_t i = 0; i < lines; i++, to += LINE_BYTES, from += LINE_BYTES) {
        const __m128i *in = (const __m128i *)(const void *)from;
        __m128i *out = (__m128i *)(void *)to;
        const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
        const __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
        _mm_store_si128(out, a);
        _mm_store_si128(out + 1, b);
        _mm_store_si128(out + 2, c);
        _mm_store_si128(out + 3, d);
    }
}

static void stream_lines(uint8_t *to, const uint8_t *from, size_t lines) {
    for (size_t i = 0; i < lines; i++, to += LINE_BYTES, from += LINE_BYTES) {
        const __m128i *in = (const __m128i *)(const void *)from;
        __m128i *out = (__m128i *)(void *)to;
        const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
        const __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
        _mm_stream_si128(out, a);
        _mm_stream_si128(out + 1, b);
        _mm_stream_si128(out + 2, c);
        _mm_stream_si128(out + 3, d);
    }
    _mm_sfence(); /* streaming stores are not ordered by themselves */
}

/* Whole lines of the target by lines, what is before and after them by memcpy. */
static inline void copy_by(void (*lines_of)(uint8_t *, const uint8_t *, size_t), void *to, const void *from,
                           size_t len_bytes) {
    uint8_t *out = to;
    const uint8_t *in = from;
    size_t head = (size_t)(-(uintptr_t)out % LINE_BYTES);
    if (head > len_bytes) head = len_bytes;
    const size_t lines = (len_bytes - head) / LINE_BYTES;
    if (head > 0) memcpy(out, in, head);
    if (lines > 0) lines_of(out + head, in + head, lines);
    const size_t done = head + lines * LINE_BYTES;
    if (done < len_bytes) memcpy(out + done, in + done, len_bytes - done);
}

void pc_copy_past_cache(void *to, const void *from, size_t len_bytes) {
    copy_by(stream_lines, to, from, len_bytes);
}

void pc_copy_anyhow(void *to, const void *from, size_t len_bytes) {
    copy_by(copy_lines, to, from, len_bytes);
}
#else
void pc_copy_past_cache(void *to, const void *from, size_t len_bytes) {
    if (len_bytes > 0) memcpy(to, from, len_bytes);
}

void pc_copy_anyhow(void *to, const void *from, size_t len_bytes) {
    if (len_bytes > 0) memcpy(to, from, len_bytes);
}
#endif
