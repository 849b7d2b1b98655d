/* K4: large memory in huge pages where the system has them: a copy of a model costs thousands of page faults otherwise. */
#ifndef PC_PAGES_H
#define PC_PAGES_H

#include "proto/pool.h"

extern const struct pc_memory pc_pages;

#endif
