/*
 * K4: where others are: endpoints as users write them, names to addresses without blocking, and this host's own
 * addresses.
 */
#ifndef PC_RESOLVE_H
#define PC_RESOLVE_H

#include "wire/message.h"

#include <uv.h>

struct pc_endpoint {
    char host[256]; /* name or numeric address, without brackets; empty: any */
    uint16_t port;
    bool has_port; /* it was written down */
};

/* "host", "host:port", "1.2.3.4:port", "[::1]", "[::1]:port", "::1". pcclInvalidArgument with a reason. */
pc_status pc_endpoint_parse(const char *text, uint16_t default_port, struct pc_endpoint *endpoint, pc_error *error);
/* True when host is numeric: then no resolving is needed. */
bool pc_endpoint_numeric(const struct pc_endpoint *endpoint, struct pc_address *address);
/* Blocks as long as the system's resolver does. Returns how many; 0 with the error set. */
uint32_t pc_endpoint_lookup(const struct pc_endpoint *endpoint, struct pc_address *addresses, uint32_t max,
                            pc_error *error);

/*
 * Resolving on a loop. done is called once on the loop's thread, unless cancelled: with the addresses, or with none
 * and the reason. The lookup itself runs on a thread of the pool and cannot be stopped; what it finds too late is
 * dropped, and the memory is freed by itself.
 */
struct pc_resolve;
typedef void (*pc_resolve_done)(void *user, const struct pc_address *addresses, uint32_t count, const char *reason);

/* NULL: no memory. */
struct pc_resolve *pc_resolve_start(uv_loop_t *loop, const struct pc_endpoint *endpoint, uint64_t timeout_ns,
                                    pc_resolve_done done, void *user);
void pc_resolve_cancel(struct pc_resolve *resolve);

/* Addresses of this host's interfaces that are up, loopback and link-local ones left out. filter: see pccl.h. */
uint32_t pc_interface_addresses(const char *filter, struct pc_address *addresses, uint32_t max);
/* Whether name passes the filter: prefixes separated by commas, "=" before an exact name, "^" before an exclusion. */
bool pc_interface_matches(const char *filter, const char *name);

#endif
