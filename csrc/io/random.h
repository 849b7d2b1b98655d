/* K4: random bytes from the system, by a call that takes no lock: a child may need them that was forked at any moment. */
#ifndef PC_RANDOM_H
#define PC_RANDOM_H

#include "proto/machine.h"

#include <stdbool.h>
#include <stddef.h>

bool pc_random_fill(void *out, size_t len_bytes);
/* For machines, which cannot do without: better an end of the process than an identity or a secret that can be guessed. */
extern const struct pc_random pc_system_random;

#endif
