/*
 * Open MPI's collectives for collectives.py: all ranks of one mpirun. Rank 0 reads the lines of peer.py ("OP BYTES
 * ITERATIONS") and answers with the seconds of the slowest rank.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {"all_reduce", "broadcast", "reduce", "all_gather", "reduce_scatter", "all_to_all"};

static void run(int op, float *data, float *other, int count, int rank, int size) {
    const int block = count / size;
    switch (op) {
    case 0: MPI_Allreduce(MPI_IN_PLACE, data, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); break;
    case 1: MPI_Bcast(data, count, MPI_FLOAT, 0, MPI_COMM_WORLD); break;
    case 2: MPI_Reduce(rank == 0 ? MPI_IN_PLACE : data, data, count, MPI_FLOAT, MPI_SUM, 0, MPI_COMM_WORLD); break;
    case 3: MPI_Allgather(MPI_IN_PLACE, 0, MPI_FLOAT, data, block, MPI_FLOAT, MPI_COMM_WORLD); break;
    case 4: MPI_Reduce_scatter_block(data, other, block, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); break;
    case 5: MPI_Alltoall(data, block, MPI_FLOAT, other, block, MPI_FLOAT, MPI_COMM_WORLD); break;
    default: break;
    }
}

/* {operation, bytes, iterations}; operation -1: the end, -2: none of ours. */
static void read_command(long command[3]) {
    char op[32];
    command[0] = -1;
    if (scanf("%31s %ld %ld", op, &command[1], &command[2]) != 3) return;
    command[0] = -2;
    for (int i = 0; i < 6; i++) {
        if (strcmp(op, names[i]) == 0) command[0] = i;
    }
}

/* Open MPI spins while it waits; others are being measured meanwhile. */
static void share_command(long command[3]) {
    MPI_Request request;
    MPI_Ibcast(command, 3, MPI_LONG, 0, MPI_COMM_WORLD, &request);
    for (int done = 0; !done;) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (!done) usleep(2000);
    }
}

int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (rank == 0) {
        printf("ready\n");
        fflush(stdout);
    }
    for (;;) {
        long command[3] = {0};
        if (rank == 0) read_command(command);
        share_command(command);
        if (command[0] == -1) break;
        if (command[0] == -2) {
            if (rank == 0) printf("error no such operation\n");
            fflush(stdout);
            continue;
        }
        float *data = calloc((size_t)command[1] + 4, 1), *other = calloc((size_t)command[1] + 4, 1);
        if (data == NULL || other == NULL) MPI_Abort(MPI_COMM_WORLD, 1);
        memset(data, 0, (size_t)command[1]);
        memset(other, 0, (size_t)command[1]);
        MPI_Barrier(MPI_COMM_WORLD);
        run((int)command[0], data, other, (int)(command[1] / 4), rank, size);
        const double start = MPI_Wtime();
        for (long i = 0; i < command[2]; i++) run((int)command[0], data, other, (int)(command[1] / 4), rank, size);
        double took = MPI_Wtime() - start, slowest = took;
        MPI_Reduce(&took, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
        if (rank == 0) printf("%.9f\n", slowest);
        fflush(stdout);
        free(data);
        free(other);
    }
    MPI_Finalize();
    return 0;
}
