/*
 * wan-emulator: carries IP packets between network namespaces as a slow, long and lossy network would.
 *
 * Commands come as lines on standard input, answers go as lines to standard output:
 *
 *     nodes COUNT SLOTS SLOT_BYTES SEED     first, once
 *     awake              keep the cores awake from the start on
 *     node I ADDRESS EGRESS_BPS EGRESS_QUEUE_BYTES INGRESS_BPS INGRESS_QUEUE_BYTES
 *     path FROM TO RATE_BPS QUEUE_BYTES DELAY_NS LOSS
 *     start INTERFACE    creates namespaces and devices; answer: "ready FD...", each node's /proc/PID/fd/FD
 *     report             answer: one line of JSON
 *
 * `node` and `path` may come at any time, `report` after the start. A wrong line ends the emulator. So does the end of
 * input, that is, of the process that started it, however that came.
 *
 * One thread moves packets: it sleeps until a packet comes or is nearly due. In a round that moved packets it sleeps
 * QUANTUM_NS before the next: at a gigabit per second a wake-up per packet would cost more than the packets. That is the
 * price in lateness: up to a quantum on the way in and another on the way out, when there is traffic.
 *
 * A sleeping core of a virtual machine wakes up a millisecond late now and then, because its host has to bring it back
 * first. "awake" starts a thread for each core that spins whenever nobody else has anything to do there, so that none
 * falls asleep. A real-time thread that spins itself would not do: the kernel takes its core away for 50 ms in a second
 * as soon as somebody else waits for it.
 *
 * Memory is allocated before the start; what finds no free slot is dropped and counted as overflow, which makes a
 * measurement void.
 */
#define _GNU_SOURCE 1
#include "network.h"
#include "tun_device.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 256, BATCH = 256 };

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull
#define QUANTUM_NS 100000ull
#define EARLY_NS 50000ull /* timers are some tens of microseconds late */

struct emulator {
    struct wan_pool pool;
    struct wan_network network;
    struct wan_tun tuns[WAN_NODES_MAX];
    bool configured, started, ended, realtime, awake;
    uint64_t seed, start_ns;
    uint64_t refused; /* frames that the kernel didn't take */
    uint64_t late_max_ns, late_recent_ns, late_sum_ns, late_over_ms, frames;
    char line[LINE_BYTES];
    size_t line_bytes;
};

static uint64_t now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Packets ------------------------------------------------------------------------------------------------------- */

/* Returns how many frames came from node i; a batch at most, so that one busy node doesn't hold up the others. */
static uint32_t take_in(struct emulator *emulator, uint32_t i) {
    uint32_t count = 0;
    for (; count < BATCH; count++) {
        const uint32_t frame = wan_pool_take(&emulator->pool);
        uint8_t surplus[1];
        const bool full = frame == WAN_NO_PACKET;
        void *const into = full ? surplus : wan_pool_bytes(&emulator->pool, frame);
        const ssize_t len = read(emulator->tuns[i].fd, into, full ? sizeof surplus : emulator->pool.slot_bytes);
        if (len > 0 && full) {
            emulator->network.overflow++;
        } else if (len > 0) {
            emulator->pool.packets[frame].len_bytes = (uint32_t)len;
            wan_network_send(&emulator->network, i, frame, now_ns());
        } else {
            if (!full) wan_pool_give(&emulator->pool, frame);
            break;
        }
    }
    return count;
}

static void note_lateness(struct emulator *emulator, uint64_t late_ns) {
    emulator->frames++;
    emulator->late_sum_ns += late_ns;
    if (late_ns > NS_PER_MS) emulator->late_over_ms++;
    if (late_ns > emulator->late_recent_ns) emulator->late_recent_ns = late_ns;
    if (late_ns > emulator->late_max_ns) emulator->late_max_ns = late_ns;
}

static uint32_t hand_out(struct emulator *emulator) {
    uint32_t count = 0;
    uint64_t now = now_ns();
    wan_network_advance(&emulator->network, now);
    for (uint32_t i = 0; i < emulator->network.node_count; i++) {
        for (uint32_t frame; frame = wan_network_receive(&emulator->network, i, now), frame != WAN_NO_PACKET;) {
            const struct wan_packet *held = &emulator->pool.packets[frame];
            now = now_ns();
            note_lateness(emulator, now - held->due_ns);
            const uint8_t *bytes = wan_pool_bytes(&emulator->pool, frame);
            if (write(emulator->tuns[i].fd, bytes, held->len_bytes) != (ssize_t)held->len_bytes) emulator->refused++;
            wan_pool_give(&emulator->pool, frame);
            count++;
        }
    }
    return count;
}

/* Report -------------------------------------------------------------------------------------------------------- */

static double cpu_s(void) {
    struct rusage usage;
    (void)getrusage(RUSAGE_THREAD, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void report_nodes(const struct wan_network *network) {
    for (uint32_t i = 0; i < network->node_count; i++) {
        const struct wan_node *node = &network->nodes[i];
        printf("%s{\"delivered\": %" PRIu64 ", \"delivered_bytes\": %" PRIu64 ", \"egress_drops\": %" PRIu64
               ", \"ingress_drops\": %" PRIu64 "}",
               i == 0 ? "" : ", ", node->delivered, node->delivered_bytes, node->egress.dropped, node->ingress.dropped);
    }
}

static void report_paths(const struct wan_network *network) {
    const char *separator = "";
    for (uint32_t i = 0; i < network->node_count; i++) {
        for (uint32_t j = 0; j < network->node_count; j++) {
            const struct wan_path *path = &network->paths[i][j];
            if (path->offered == 0) continue;
            printf("%s{\"from\": %u, \"to\": %u, \"packets\": %" PRIu64 ", \"bytes\": %" PRIu64
                   ", \"queue_drops\": %" PRIu64 ", \"losses\": %" PRIu64 "}",
                   separator, i, j, path->offered, path->offered_bytes, path->shaper.dropped, path->lost);
            separator = ", ";
        }
    }
}

/* The largest lateness is given twice: since the last report, and of all time. */
static void report(struct emulator *emulator) {
    const struct wan_network *network = &emulator->network;
    uint64_t packets = 0, delivered = 0, drops = 0, losses = 0;
    for (uint32_t i = 0; i < network->node_count; i++) {
        delivered += network->nodes[i].delivered;
        drops += network->nodes[i].egress.dropped + network->nodes[i].ingress.dropped;
        for (uint32_t j = 0; j < network->node_count; j++) {
            packets += network->paths[i][j].offered;
            drops += network->paths[i][j].shaper.dropped;
            losses += network->paths[i][j].lost;
        }
    }
    const double mean_us =
        emulator->frames == 0 ? 0 : (double)emulator->late_sum_ns / (double)emulator->frames * 1e-3;
    printf("{\"seed\": %" PRIu64 ", \"realtime\": %s, \"awake\": %s, ", emulator->seed,
           emulator->realtime ? "true" : "false", emulator->awake ? "true" : "false");
    printf("\"wall_s\": %.6f, \"cpu_s\": %.6f, ", (double)(now_ns() - emulator->start_ns) * 1e-9, cpu_s());
    printf("\"packets\": %" PRIu64 ", \"delivered\": %" PRIu64 ", \"frames\": %" PRIu64 ", \"queue_drops\": %" PRIu64
           ", \"losses\": %" PRIu64 ", \"unroutable\": %" PRIu64 ", \"overflow\": %" PRIu64 ", \"refused\": %" PRIu64 ", \"held_max\": %u, ",
           packets, delivered, emulator->frames, drops, losses, network->unroutable, network->overflow,
           emulator->refused, emulator->pool.held_max);
    printf("\"late_recent_us\": %.1f, \"late_max_us\": %.1f, \"late_mean_us\": %.1f, \"late_over_1ms\": %" PRIu64 ", ",
           (double)emulator->late_recent_ns * 1e-3, (double)emulator->late_max_ns * 1e-3, mean_us,
           emulator->late_over_ms);
    printf("\"nodes\": [");
    report_nodes(network);
    printf("], \"paths\": [");
    report_paths(network);
    printf("]}\n");
    (void)fflush(stdout);
    emulator->late_recent_ns = 0;
}

/* Commands ------------------------------------------------------------------------------------------------------ */

static _Noreturn void fail(const char *what, const char *why) {
    (void)fprintf(stderr, "wan-emulator: %s: %s\n", what, why);
    exit(1);
}

static void set_nodes(struct emulator *emulator, const char *line) {
    uint32_t count, slots, slot_bytes;
    const int found = sscanf(line, "nodes %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu64, &count, &slots, &slot_bytes,
                             &emulator->seed);
    if (found != 4 || emulator->configured || count < 2 || count > WAN_NODES_MAX) fail(line, "not understood");
    if (!wan_pool_init(&emulator->pool, slots, slot_bytes)) fail(line, "out of memory");
    wan_network_init(&emulator->network, &emulator->pool, count, emulator->seed);
    emulator->configured = true;
}

static void set_node(struct emulator *emulator, const char *line) {
    uint32_t i;
    char address[16];
    uint64_t egress_bps, egress_bytes, ingress_bps, ingress_bytes;
    const int found = sscanf(line, "node %" SCNu32 " %15s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &i, address,
                             &egress_bps, &egress_bytes, &ingress_bps, &ingress_bytes);
    if (found != 6 || i >= emulator->network.node_count) fail(line, "not understood");
    struct wan_node *node = &emulator->network.nodes[i];
    if (inet_pton(AF_INET, address, node->address) != 1) fail(line, "not an address");
    wan_shaper_set(&node->egress, egress_bps, egress_bytes);
    wan_shaper_set(&node->ingress, ingress_bps, ingress_bytes);
}

static void set_path(struct emulator *emulator, const char *line) {
    uint32_t from, to;
    uint64_t rate_bps, queue_bytes, delay_ns;
    double loss;
    const int found = sscanf(line, "path %" SCNu32 " %" SCNu32 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %lf", &from, &to,
                             &rate_bps, &queue_bytes, &delay_ns, &loss);
    if (found != 6 || from >= emulator->network.node_count || to >= emulator->network.node_count || from == to ||
        !(loss >= 0 && loss <= 1)) {
        fail(line, "not understood");
    }
    struct wan_path *path = &emulator->network.paths[from][to];
    wan_shaper_set(&path->shaper, rate_bps, queue_bytes);
    path->delay_ns = delay_ns;
    path->loss = loss;
}

static void *stay_awake(void *core) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET((size_t)(uintptr_t)core, &cores);
    const struct sched_param priority = {.sched_priority = 0};
    if (sched_setaffinity(0, sizeof cores, &cores) != 0 || sched_setscheduler(0, SCHED_IDLE, &priority) != 0) {
        fail("awake", strerror(errno));
    }
    for (;;) atomic_signal_fence(memory_order_seq_cst);
    return NULL;
}

static void keep_cores_awake(void) {
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) != 0) fail("awake", strerror(errno));
    for (uintptr_t core = 0; core < CPU_SETSIZE; core++) {
        pthread_t thread;
        if (!CPU_ISSET(core, &cores)) continue;
        const int failure = pthread_create(&thread, NULL, stay_awake, (void *)core);
        if (failure != 0) fail("awake", strerror(failure));
    }
}

/*
 * The emulator stands for hardware, which doesn't wait for its turn on a core: real time, where that is allowed, and
 * before what runs in the nodes.
 */
static bool become_realtime(void) {
    const struct sched_param priority = {.sched_priority = 2};
    (void)prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
    return sched_setscheduler(0, SCHED_RR, &priority) == 0;
}

static void start(struct emulator *emulator, const char *line) {
    char interface[16];
    if (!emulator->configured || emulator->started || sscanf(line, "start %15s", interface) != 1) {
        fail(line, "not understood");
    }
    for (uint32_t i = 0; i < emulator->network.node_count; i++) {
        const char *step;
        const int failure = wan_tun_open(&emulator->tuns[i], interface, &step);
        if (failure != 0) fail(step, strerror(failure));
    }
    if (emulator->awake) keep_cores_awake();
    emulator->realtime = become_realtime();
    emulator->started = true;
    emulator->start_ns = now_ns();
    printf("ready");
    for (uint32_t i = 0; i < emulator->network.node_count; i++) printf(" %d", emulator->tuns[i].namespace_fd);
    printf("\n");
    (void)fflush(stdout);
}

static void obey(struct emulator *emulator, const char *line) {
    if (strncmp(line, "nodes ", 6) == 0) set_nodes(emulator, line);
    else if (strncmp(line, "node ", 5) == 0) set_node(emulator, line);
    else if (strncmp(line, "path ", 5) == 0) set_path(emulator, line);
    else if (strcmp(line, "awake") == 0 && !emulator->started) emulator->awake = true;
    else if (strncmp(line, "start ", 6) == 0) start(emulator, line);
    else if (strcmp(line, "report") == 0 && emulator->started) report(emulator);
    else fail(line, "not understood");
}

static void read_commands(struct emulator *emulator) {
    char *const line = emulator->line;
    const ssize_t len = read(STDIN_FILENO, line + emulator->line_bytes, LINE_BYTES - 1 - emulator->line_bytes);
    if (len <= 0) {
        emulator->ended = len == 0 || errno != EINTR;
        return;
    }
    emulator->line_bytes += (size_t)len;
    line[emulator->line_bytes] = '\0';
    char *from = line;
    for (char *end; (end = strchr(from, '\n')) != NULL; from = end + 1) {
        *end = '\0';
        obey(emulator, from);
    }
    emulator->line_bytes -= (size_t)(from - line);
    memmove(line, from, emulator->line_bytes);
    if (emulator->line_bytes == LINE_BYTES - 1) fail("a line", "too long");
}

/* Loop ---------------------------------------------------------------------------------------------------------- */

/* Waits for a command, for a packet unless packets_moved, or until something is nearly due. */
static void wait(struct emulator *emulator, bool packets_moved) {
    struct pollfd fds[WAN_NODES_MAX + 1] = {{.fd = STDIN_FILENO, .events = POLLIN}};
    nfds_t count = 1;
    for (uint32_t i = 0; emulator->started && !packets_moved && i < emulator->network.node_count; i++) {
        fds[count++] = (struct pollfd){.fd = emulator->tuns[i].fd, .events = POLLIN};
    }
    uint64_t wait_ns = QUANTUM_NS;
    bool forever = false;
    if (!packets_moved) {
        const uint64_t next_ns = emulator->configured ? wan_network_next_ns(&emulator->network) : UINT64_MAX;
        const uint64_t wake_ns = now_ns() + EARLY_NS;
        forever = next_ns == UINT64_MAX;
        wait_ns = next_ns > wake_ns ? next_ns - wake_ns : 0;
    }
    const struct timespec timeout = {(time_t)(wait_ns / NS_PER_S), (long)(wait_ns % NS_PER_S)};
    if (ppoll(fds, count, forever ? NULL : &timeout, NULL) > 0 && fds[0].revents != 0) read_commands(emulator);
}

int main(void) {
    static struct emulator emulator;
    while (!emulator.ended) {
        uint32_t moved = 0;
        if (emulator.started) {
            for (uint32_t i = 0; i < emulator.network.node_count; i++) moved += take_in(&emulator, i);
            moved += hand_out(&emulator);
        }
        wait(&emulator, moved != 0);
    }
    if (emulator.started) {
        report(&emulator);
        for (uint32_t i = 0; i < emulator.network.node_count; i++) wan_tun_close(&emulator.tuns[i]);
    }
    wan_pool_fini(&emulator.pool);
    return 0;
}
