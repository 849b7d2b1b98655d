/* K2, private to the codecs: numbers in the header of an encoded block, at any address. */
#ifndef PC_CODEC_HEADER_H
#define PC_CODEC_HEADER_H

#include <stdint.h>
#include <string.h>

static inline void pc_put_f32(uint8_t *out, float value) {
    memcpy(out, &value, sizeof value);
}

static inline void pc_put_f64(uint8_t *out, double value) {
    memcpy(out, &value, sizeof value);
}

static inline float pc_get_f32(const uint8_t *in) {
    float value;
    memcpy(&value, in, sizeof value);
    return value;
}

static inline double pc_get_f64(const uint8_t *in) {
    double value;
    memcpy(&value, in, sizeof value);
    return value;
}

#endif
