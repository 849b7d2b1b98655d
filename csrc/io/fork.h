/*
 * K4: what happens to descriptors and handles when the process forks. A child must not keep its parent's connections
 * open: the parent's death would then look like silence. So every socket is listed here, and the child closes them all
 * before fork returns in it. Handles remember the generation in which they were made and refuse to work in another.
 */
#ifndef PC_FORK_H
#define PC_FORK_H

#include <stdbool.h>
#include <stdint.h>

/* Grows by one in each child. */
uint64_t pc_fork_generation(void);
/* Installs the handlers, once; before the first track. */
bool pc_fork_prepare(void);
/* False: no memory. */
bool pc_fork_track(int fd);
void pc_fork_untrack(int fd);

#endif
