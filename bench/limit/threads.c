/*
 * What a second I/O thread can bring: two processes send a buffer to each other and add what they receive, over some
 * connections that belong to some threads. No protocol, so nothing else can hold the threads up.
 *
 *     threads THREADS CONNECTIONS BYTES ROUNDS      prints the seconds of each round
 */
#include "program.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK_BYTES = 256 << 10, CONNECTIONS_MAX = 16 };

struct lane {
    int fd;
    const char *out;
    float *in;
    char *block;
    size_t bytes, sent, received;
};

struct worker {
    pthread_t thread;
    struct lane *lanes[CONNECTIONS_MAX];
    int count;
};

static pthread_barrier_t barrier;
static int rounds;

static int send_some(struct lane *lane) {
    const size_t left = lane->bytes - lane->sent;
    if (left == 0) return 0;
    const ssize_t len = send(lane->fd, lane->out + lane->sent, left < BLOCK_BYTES ? left : BLOCK_BYTES, MSG_NOSIGNAL);
    if (len < 0 && errno != EAGAIN) die("send");
    if (len > 0) lane->sent += (size_t)len;
    return len > 0;
}

static int receive_some(struct lane *lane) {
    const size_t left = lane->bytes - lane->received, filled = lane->received % BLOCK_BYTES;
    if (left == 0) return 0;
    const ssize_t len = recv(lane->fd, lane->block + filled, left < BLOCK_BYTES - filled ? left : BLOCK_BYTES - filled, 0);
    if (len == 0) exit(1);
    if (len < 0 && errno != EAGAIN) die("recv");
    if (len < 0) return 0;
    lane->received += (size_t)len;
    const size_t end = filled + (size_t)len;
    if (end == BLOCK_BYTES || lane->received == lane->bytes) {
        float *to = lane->in + (lane->received - end) / 4;
        const float *from = (const float *)(const void *)lane->block;
        for (size_t i = 0; i < end / 4; i++) to[i] += from[i];
    }
    return 1;
}

static void run_round(struct worker *worker) {
    for (int i = 0; i < worker->count; i++) worker->lanes[i]->sent = worker->lanes[i]->received = 0;
    for (;;) {
        struct pollfd fds[CONNECTIONS_MAX];
        int moved = 0, open = 0;
        for (int i = 0; i < worker->count; i++) {
            struct lane *lane = worker->lanes[i];
            moved += send_some(lane) + receive_some(lane);
            const int events = (lane->sent < lane->bytes ? POLLOUT : 0) | (lane->received < lane->bytes ? POLLIN : 0);
            fds[i] = (struct pollfd){events != 0 ? lane->fd : -1, (short)events, 0};
            open += events != 0;
        }
        if (open == 0) return;
        if (moved == 0 && poll(fds, (nfds_t)worker->count, -1) < 0) die("poll");
    }
}

static void *work(void *argument) {
    for (int i = 0; i < rounds + 1; i++) {
        pthread_barrier_wait(&barrier);
        run_round(argument);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

/* One end of each connection. */
static void open_lanes(struct lane *lanes, int count, int listener, const struct sockaddr_in *address, int child) {
    for (int i = 0; i < count; i++) {
        lanes[i].fd = child ? socket(AF_INET, SOCK_STREAM, 0) : accept(listener, NULL, NULL);
        const int one = 1;
        if (child && connect(lanes[i].fd, (const struct sockaddr *)address, sizeof *address) != 0) die("connect");
        if (lanes[i].fd < 0 || setsockopt(lanes[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) die("TCP_NODELAY");
        if (fcntl(lanes[i].fd, F_SETFL, O_NONBLOCK) != 0) die("O_NONBLOCK");
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const int threads = atoi(argv[1]), connections = atoi(argv[2]);
    const size_t bytes = (size_t)atoll(argv[3]) / (size_t)connections / 4 * 4;
    rounds = atoi(argv[4]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, len) != 0 || listen(listener, CONNECTIONS_MAX) != 0) die("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &len) != 0) die("getsockname");
    const int child = fork() == 0;
    struct lane lanes[CONNECTIONS_MAX];
    struct worker workers[CONNECTIONS_MAX] = {0};
    open_lanes(lanes, connections, listener, &address, child);
    for (int i = 0; i < connections; i++) {
        char *out = malloc(bytes), *in = malloc(bytes);
        if (out == NULL || in == NULL) die("malloc");
        memset(out, 0, bytes);
        memset(in, 0, bytes);
        lanes[i] = (struct lane){lanes[i].fd, out, (float *)(void *)in, malloc(BLOCK_BYTES), bytes, 0, 0};
        struct worker *worker = &workers[i % threads];
        worker->lanes[worker->count++] = &lanes[i];
    }
    if (pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1) != 0) die("barrier");
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) die("thread");
    }
    for (int i = 0; i < rounds + 1; i++) {
        const double start = now();
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        if (!child && i > 0) printf("%.6f\n", now() - start);
    }
    for (int i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
    if (!child) (void)wait(NULL);
    return 0;
}
