/*
 * How fast codecs are: codecs SAMPLES. A line of JSON for each codec, operation and size: bytes of float32 per second,
 * beside those of memcpy and of adding float32. Normal data; one thread.
 */
#include "math/codec.h"
#include "math/reduce.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CACHED_ELEMS = 32 << 10, DRAM_ELEMS = 32 << 20 };

static float *values, *out;
static uint8_t *coded;

static double now_s(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static float normal(void) {
    const double u = (rand() + 1.0) / (RAND_MAX + 2.0), v = rand() / (double)RAND_MAX;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

enum operation { COPY, ADD, ENCODE, DECODE, DECODE_ADD };

static void run(enum operation operation, const struct pc_codec *codec, size_t count, size_t coded_bytes) {
    switch (operation) {
    case COPY: memcpy(out, values, count * sizeof *out); break;
    case ADD: pc_reduce_accumulate(pcclFloat, pcclSum, out, values, count); break;
    case ENCODE: (void)pc_codec_encode(codec, pcclFloat, coded, values, count, 1); break;
    case DECODE: pc_codec_decode(codec, pcclFloat, out, NULL, coded, coded_bytes, count); break;
    case DECODE_ADD: pc_codec_decode(codec, pcclFloat, out, out, coded, coded_bytes, count); break;
    }
}

static void measure(const char *name, enum operation operation, const struct pc_codec *codec, int samples) {
    static const char *const operations[] = {"copy", "add", "encode", "decode", "decode and add"};
    for (int cached = 0; cached < 2; cached++) {
        const size_t count = cached ? CACHED_ELEMS : DRAM_ELEMS;
        const int repeats = cached ? 200 : 1;
        size_t coded_bytes = 0;
        if (codec != NULL) coded_bytes = pc_codec_encode(codec, pcclFloat, coded, values, count, 1);
        memset(out, 0, count * sizeof *out);
        run(operation, codec, count, coded_bytes);
        printf("{\"codec\": \"%s\", \"operation\": \"%s\", \"stochastic\": %s, \"cached\": %s, \"gbs\": [", name,
               operations[operation], codec != NULL && codec->stochastic ? "true" : "false", cached ? "true" : "false");
        for (int i = 0; i < samples; i++) {
            const double start = now_s();
            for (int k = 0; k < repeats; k++) run(operation, codec, count, coded_bytes);
            printf("%s%.3f", i == 0 ? "" : ", ", (double)count * repeats * sizeof(float) / (now_s() - start) / 1e9);
        }
        printf("]}\n");
        (void)fflush(stdout);
    }
}

int main(int argc, char **argv) {
    static const struct { uint8_t kind, bits; } codecs[] = {
        {pcclQuantBf16, 0}, {pcclQuantFp16, 0}, {pcclQuantInt8, 0}, {pcclQuantInt4, 0}, {pcclQuantFp8E4M3, 0},
        {pcclQuantE3M0, 0}, {pcclQuantMinMax, 8}, {pcclQuantZeroPointScale, 8}, {pcclQuantTopK, 0}};
    const int samples = argc > 1 ? atoi(argv[1]) : 11;
    values = aligned_alloc(64, (size_t)DRAM_ELEMS * sizeof *values);
    out = aligned_alloc(64, (size_t)DRAM_ELEMS * sizeof *out);
    coded = aligned_alloc(64, (size_t)DRAM_ELEMS * 8);
    if (values == NULL || out == NULL || coded == NULL) return 1;
    for (size_t i = 0; i < DRAM_ELEMS; i++) values[i] = i < 1 << 20 ? normal() : values[i - (1 << 20)];
    memset(coded, 1, (size_t)DRAM_ELEMS * 8);
    measure("none", COPY, NULL, samples);
    measure("none", ADD, NULL, samples);
    for (size_t i = 0; i < sizeof codecs / sizeof *codecs; i++) {
        struct pc_codec codec = pc_codec_make(codecs[i].kind, codecs[i].bits, 0);
        const char *name = pc_codec_name(codec.kind);
        for (int operation = ENCODE; operation <= DECODE_ADD; operation++) {
            measure(name, (enum operation)operation, &codec, samples);
        }
        if (codec.kind == pcclQuantTopK) continue;
        codec.stochastic = true;
        measure(name, ENCODE, &codec, samples);
    }
}
