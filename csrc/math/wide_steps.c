/*
 * Steps in float64. Element by element, in an order that all levels share: pure functions on the caller's thread, complete
 * when they return.
 */
#include "math/wide_steps.h"

#include "math/codec_header.h"
#include "math/codec_loops.h"

#include <math.h>

#define WIDE_TINY 0x1p-900
#define WIDE_HUGE 0x1p1000

struct wide_steps {
    double offset, step, inverse, most;
};

static double element(const void *in, pcclDataType_t dtype, size_t i) {
    return dtype == pcclDouble ? ((const any_f64 *)in)[i] : (double)((const any_f32 *)in)[i];
}

static double code_most(uint8_t bits) {
    return bits == 64 ? 0x1p53 - 1 : (double)((1ull << bits) - 1);
}

static bool find_wide_steps(const struct pc_codec *codec, pcclDataType_t dtype, const void *in, size_t count,
                            struct wide_steps *s) {
    double least = element(in, dtype, 0), most = least;
    for (size_t i = 0; i < count; i++) {
        const double value = element(in, dtype, i);
        if (!isfinite(value)) return false;
        if (value < least) least = value;
        if (value > most) most = value;
    }
    if (least < -WIDE_HUGE || most > WIDE_HUGE) return false;
    *s = (struct wide_steps){.offset = least, .most = code_most(codec->bits)};
    s->step = (most - least) / s->most;
    if (s->step < WIDE_TINY) s->step = 0;
    if (s->step == 0) return true;
    s->inverse = 1 / s->step;
    if (codec->kind == pcclQuantZeroPointScale && least <= 0 && most >= 0) s->offset = -(rint(-least * s->inverse) * s->step);
    return true;
}

static void put_code(uint8_t *codes, uint8_t bits, size_t i, uint64_t code) {
    for (size_t byte = 0; byte < bits / 8u; byte++) codes[i * (bits / 8u) + byte] = (uint8_t)(code >> (byte * 8));
}

static uint64_t get_code(const uint8_t *codes, uint8_t bits, size_t i) {
    uint64_t code = 0;
    for (size_t byte = 0; byte < bits / 8u; byte++) code |= (uint64_t)codes[i * (bits / 8u) + byte] << (byte * 8);
    return code;
}

bool pc_wide_steps_encode(const struct pc_codec *codec, pcclDataType_t dtype, uint8_t *header, uint8_t *codes,
                          const void *in, size_t count, uint32_t seed, uint32_t first) {
    struct wide_steps s;
    if (!find_wide_steps(codec, dtype, in, count, &s)) return false;
    pc_put_f64(header, s.offset);
    pc_put_f64(header + 8, s.step);
    for (size_t i = 0; i < count; i++) {
        double steps = (element(in, dtype, i) - s.offset) * s.inverse;
        steps = codec->stochastic ? floor(steps + (double)dither(noise(seed, first + (uint32_t)i)) + 0.5) : rint(steps);
        put_code(codes, codec->bits, i, steps <= 0 ? 0 : (uint64_t)(steps < s.most ? steps : s.most));
    }
    return true;
}

void pc_wide_steps_decode(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const void *base,
                          const uint8_t *header, const uint8_t *codes, size_t count) {
    const double offset = pc_get_f64(header), step = pc_get_f64(header + 8);
    for (size_t i = 0; i < count; i++) {
        const double value = offset + (double)get_code(codes, codec->bits, i) * step;
        if (dtype == pcclDouble) {
            ((any_f64 *)out)[i] = base != NULL ? ((const any_f64 *)base)[i] + value : value;
        } else {
            ((any_f32 *)out)[i] = base != NULL ? ((const any_f32 *)base)[i] + (float)value : (float)value;
        }
    }
}
