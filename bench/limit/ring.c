/*
 * The least that a ring all-reduce over TCP needs, to compare with: one connection to the next rank, one thread, blocks
 * of 512 KiB, float32 sum in place. No protocol: nobody can join, die or be told of an error.
 *
 *     ring RANK SIZE PORT      ranks listen on consecutive ports of 127.0.0.1
 *
 * Speaks the lines of peer.py: "all_reduce BYTES ITERATIONS" -> seconds.
 */
#include "program.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BLOCK_ELEMS = (512 << 10) / 4 };

static int rank, size, to_next, from_previous;

static struct sockaddr_in address_of(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void tune(int fd) {
    const int one = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) die("TCP_NODELAY");
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0) die("O_NONBLOCK");
}

static void connect_ring(int port) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in own = address_of(port + rank), next = address_of(port + (rank + 1) % size);
    (void)setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&own, sizeof own) != 0 || listen(listener, 1) != 0) die("listen");
    to_next = socket(AF_INET, SOCK_STREAM, 0);
    while (connect(to_next, (struct sockaddr *)&next, sizeof next) != 0) {
        if (errno != ECONNREFUSED) die("connect");
        close(to_next);
        to_next = socket(AF_INET, SOCK_STREAM, 0);
        usleep(10000);
    }
    from_previous = accept(listener, NULL, NULL);
    if (from_previous < 0) die("accept");
    close(listener);
    tune(to_next);
    tune(from_previous);
}

static size_t chunk_start(size_t count, int chunk) {
    return count / (size_t)size * (size_t)chunk;
}

static size_t chunk_elems(size_t count, int chunk) {
    return (chunk == size - 1 ? count : chunk_start(count, chunk + 1)) - chunk_start(count, chunk);
}

/* Sends a chunk and receives another one, which is added to data (adding) or replaces it, block by block. */
static void step(float *data, size_t count, int sent_chunk, int received_chunk, int adding, float *block) {
    const char *out = (const char *)(data + chunk_start(count, sent_chunk));
    float *in = data + chunk_start(count, received_chunk);
    size_t to_send = 4 * chunk_elems(count, sent_chunk), to_receive = 4 * chunk_elems(count, received_chunk), filled = 0;
    while (to_send > 0 || to_receive > 0) {
        struct pollfd fds[2] = {{to_send > 0 ? to_next : -1, POLLOUT, 0}, {to_receive > 0 ? from_previous : -1, POLLIN, 0}};
        if (poll(fds, 2, -1) < 0) die("poll");
        if (fds[0].revents != 0) {
            const ssize_t sent = send(to_next, out, to_send < 1 << 20 ? to_send : 1 << 20, MSG_NOSIGNAL);
            if (sent < 0 && errno != EAGAIN) die("send");
            if (sent > 0) out += sent, to_send -= (size_t)sent;
        }
        if (fds[1].revents == 0) continue;
        char *place = adding ? (char *)block + filled : (char *)in + filled;
        size_t room = adding ? 4 * BLOCK_ELEMS - filled : to_receive;
        if (room > to_receive) room = to_receive;
        const ssize_t got = recv(from_previous, place, room, 0);
        if (got == 0) exit(0);
        if (got < 0 && errno != EAGAIN) die("recv");
        if (got <= 0) continue;
        filled += (size_t)got;
        to_receive -= (size_t)got;
        if (adding && (filled == 4 * BLOCK_ELEMS || to_receive == 0)) {
            for (size_t i = 0; i < filled / 4; i++) in[i] += block[i];
            in += filled / 4;
            filled = 0;
        }
    }
}

static void all_reduce(float *data, size_t count, float *block) {
    for (int round = 0; round < 2 * (size - 1); round++) {
        const int sent = (rank + 2 * size - round) % size, received = (rank + 2 * size - round - 1) % size;
        step(data, count, sent, received, round < size - 1, block);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    rank = atoi(argv[1]);
    size = atoi(argv[2]);
    connect_ring(atoi(argv[3]));
    float *block = malloc(4 * BLOCK_ELEMS), one = 0, *data = NULL;
    size_t capacity = 0, bytes = 0;
    int iterations = 0;
    char op[32];
    if (block == NULL) die("malloc");
    printf("ready\n");
    fflush(stdout);
    while (scanf("%31s %zu %d", op, &bytes, &iterations) == 3) {
        if (strcmp(op, "all_reduce") != 0) {
            printf("error only all_reduce\n");
            fflush(stdout);
            continue;
        }
        if (bytes > capacity) {
            free(data);
            data = malloc(bytes);
            if (data == NULL) die("malloc");
            memset(data, 0, bytes);
            capacity = bytes;
        }
        all_reduce(&one, 1, block); /* a barrier */
        all_reduce(data, bytes / 4, block);
        const double start = now();
        for (int i = 0; i < iterations; i++) all_reduce(data, bytes / 4, block);
        printf("%.9f\n", now() - start);
        fflush(stdout);
    }
    return 0;
}
