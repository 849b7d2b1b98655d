/*
 * Endpoints and addresses. A numeric host never reaches the resolver. getaddrinfo runs on libuv's thread pool, where
 * nothing can stop it: the request outlives its asker, and a deadline of our own answers in its place.
 */
#define _DEFAULT_SOURCE 1
#include "io/resolve.h"

#include "base/checked.h"
#include "io/gate.h"
#include "io/sock.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Endpoints ----------------------------------------------------------------------------------------------------- */

static bool parse_port(const char *text, uint16_t *port) {
    uint32_t value = 0;
    if (*text == '\0') return false;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9') return false;
        value = value * 10 + (uint32_t)(*text - '0');
        if (value > UINT16_MAX) return false;
    }
    *port = (uint16_t)value;
    return true;
}

pc_status pc_endpoint_parse(const char *text, uint16_t default_port, struct pc_endpoint *endpoint, pc_error *error) {
    memset(endpoint, 0, sizeof *endpoint);
    endpoint->port = default_port;
    const char *host = text, *end = NULL, *port = NULL;
    if (text[0] == '[') {
        host = text + 1;
        end = strchr(host, ']');
        if (end == NULL || (end[1] != '\0' && end[1] != ':')) {
            return pc_error_set(error, pcclInvalidArgument, "'%s' has no address in brackets", text);
        }
        if (end[1] == ':') port = end + 2;
    } else {
        const char *colon = strchr(text, ':');
        /* Two colons and no brackets: an IPv6 address and nothing else. */
        const bool bare6 = colon != NULL && strchr(colon + 1, ':') != NULL;
        end = colon != NULL && !bare6 ? colon : text + strlen(text);
        if (colon != NULL && !bare6) port = colon + 1;
    }
    const size_t len = (size_t)(end - host);
    if (len >= sizeof endpoint->host) return pc_error_set(error, pcclInvalidArgument, "'%.64s...' is too long", text);
    if (port != NULL && !parse_port(port, &endpoint->port)) {
        return pc_error_set(error, pcclInvalidArgument, "'%s': '%s' is no port (0 to 65535)", text, port);
    }
    endpoint->has_port = port != NULL;
    memcpy(endpoint->host, host, len);
    return pcclSuccess;
}

bool pc_endpoint_numeric(const struct pc_endpoint *endpoint, struct pc_address *address) {
    memset(address, 0, sizeof *address);
    address->port = endpoint->port;
    if (inet_pton(AF_INET, endpoint->host, address->ip) == 1) {
        address->family = 4;
        return true;
    }
    char host[sizeof endpoint->host];
    memcpy(host, endpoint->host, sizeof host);
    char *scope = strchr(host, '%');
    if (scope != NULL) *scope++ = '\0';
    if (inet_pton(AF_INET6, host, address->ip) != 1) return false;
    address->family = 6;
    if (scope != NULL) address->scope = if_nametoindex(scope);
    return true;
}

static uint32_t take_addresses(const struct addrinfo *list, uint16_t port, struct pc_address *out, uint32_t max) {
    uint32_t count = 0;
    for (; list != NULL && count < max; list = list->ai_next) {
        if (!pc_sock_from_system(list->ai_addr, &out[count])) continue;
        out[count++].port = port;
    }
    return count;
}

static const struct addrinfo stream_hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};

uint32_t pc_endpoint_lookup(const struct pc_endpoint *endpoint, struct pc_address *addresses, uint32_t max,
                            pc_error *error) {
    if (max > 0 && pc_endpoint_numeric(endpoint, addresses)) return 1;
    struct addrinfo *list = NULL;
    const int code = getaddrinfo(endpoint->host, NULL, &stream_hints, &list);
    const uint32_t count = code == 0 ? take_addresses(list, endpoint->port, addresses, max) : 0;
    if (list != NULL) freeaddrinfo(list);
    if (count == 0) {
        (void)pc_error_set(error, pcclInvalidArgument, "cannot resolve host '%s': %s", endpoint->host,
                           code == 0 ? "no address" : gai_strerror(code));
    }
    return count;
}

/* Resolving on a loop ------------------------------------------------------------------------------------------- */

struct pc_resolve {
    uv_getaddrinfo_t request;
    uv_timer_t *timer; /* freed by its own close */
    uint16_t port;
    struct pc_address numeric;
    pc_resolve_done done; /* NULL: answered or cancelled */
    void *user;
    bool looking; /* the request is with the pool */
};

static void free_timer(uv_handle_t *handle) {
    free(handle);
}

static void answer(struct pc_resolve *resolve, const struct pc_address *addresses, uint32_t count, const char *reason) {
    const pc_resolve_done done = resolve->done;
    void *user = resolve->user;
    pc_resolve_cancel(resolve);
    if (done != NULL) done(user, addresses, count, reason);
}

static void on_timer(uv_timer_t *timer) {
    struct pc_resolve *resolve = timer->data;
    struct pc_gate *gate = timer->loop->data;
    const struct pc_address numeric = resolve->numeric; /* the answer frees resolve */
    pc_gate_enter(gate);
    if (resolve->looking) answer(resolve, NULL, 0, "the resolver did not answer in time");
    else answer(resolve, &numeric, 1, NULL);
    pc_gate_leave(gate);
}

static void on_addrinfo(uv_getaddrinfo_t *request, int status, struct addrinfo *list) {
    struct pc_resolve *resolve = request->data;
    struct pc_gate *gate = request->loop->data;
    struct pc_address addresses[PC_ADDRESSES_MAX];
    uint32_t count = 0;
    pc_gate_enter(gate);
    resolve->looking = false;
    if (resolve->done == NULL) {
        free(resolve);
    } else {
        if (status == 0) count = take_addresses(list, resolve->port, addresses, PC_ADDRESSES_MAX);
        answer(resolve, addresses, count, status == 0 ? "no address" : uv_strerror(status));
    }
    pc_gate_leave(gate);
    uv_freeaddrinfo(list);
}

struct pc_resolve *pc_resolve_start(uv_loop_t *loop, const struct pc_endpoint *endpoint, uint64_t timeout_ns,
                                    pc_resolve_done done, void *user) {
    struct pc_resolve *resolve = pc_calloc(1, sizeof *resolve);
    uv_timer_t *timer = pc_calloc(1, sizeof *timer);
    if (resolve == NULL || timer == NULL || uv_timer_init(loop, timer) != 0) {
        free(resolve);
        free(timer);
        return NULL;
    }
    resolve->timer = timer;
    resolve->done = done;
    resolve->user = user;
    resolve->port = endpoint->port;
    resolve->request.data = resolve;
    timer->data = resolve;
    uint64_t timeout_ms = timeout_ns / 1000000;
    if (pc_endpoint_numeric(endpoint, &resolve->numeric)) {
        timeout_ms = 0; /* answered by the next turn of the loop: never from within this call */
    } else {
        resolve->looking =
            uv_getaddrinfo(loop, &resolve->request, on_addrinfo, endpoint->host, NULL, &stream_hints) == 0;
        if (!resolve->looking) {
            uv_close((uv_handle_t *)timer, free_timer);
            free(resolve);
            return NULL;
        }
    }
    (void)uv_timer_start(timer, on_timer, timeout_ms, 0);
    return resolve;
}

void pc_resolve_cancel(struct pc_resolve *resolve) {
    if (resolve == NULL) return;
    resolve->done = NULL;
    if (resolve->timer != NULL) uv_close((uv_handle_t *)resolve->timer, free_timer);
    resolve->timer = NULL;
    if (resolve->looking) (void)uv_cancel((uv_req_t *)&resolve->request); /* on_addrinfo frees, sooner or later */
    else free(resolve);
}

/* Interfaces ---------------------------------------------------------------------------------------------------- */

static bool item_matches(const char *item, size_t len, const char *name) {
    if (len > 0 && item[0] == '=') return strlen(name) == len - 1 && strncmp(item + 1, name, len - 1) == 0;
    return strncmp(item, name, len) == 0;
}

bool pc_interface_matches(const char *filter, const char *name) {
    if (filter == NULL || filter[0] == '\0') return true;
    const bool exclude = filter[0] == '^';
    if (exclude) filter++;
    while (*filter != '\0') {
        const size_t len = strcspn(filter, ",");
        if (len > 0 && item_matches(filter, len, name)) return !exclude;
        filter += len;
        if (*filter == ',') filter++;
    }
    return exclude;
}

uint32_t pc_interface_addresses(const char *filter, struct pc_address *addresses, uint32_t max) {
    struct ifaddrs *list = NULL;
    uint32_t count = 0;
    if (getifaddrs(&list) != 0) return 0;
    for (const struct ifaddrs *at = list; at != NULL && count < max; at = at->ifa_next) {
        struct pc_address address;
        if (at->ifa_addr == NULL || (at->ifa_flags & IFF_UP) == 0 || !pc_interface_matches(filter, at->ifa_name)) {
            continue;
        }
        if (!pc_sock_from_system(at->ifa_addr, &address)) continue;
        address.port = 0;
        /* Loopback only for one who names it. */
        const bool named = filter != NULL && filter[0] != '\0' && filter[0] != '^';
        if ((pc_address_is_loopback(&address) && !named) || pc_address_is_link_local(&address)) continue;
        addresses[count++] = address;
    }
    freeifaddrs(list);
    return count;
}
