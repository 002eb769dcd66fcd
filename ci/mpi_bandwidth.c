/* How fast rank 0 sends to rank 1, and rank 1 to rank 0: two lines, megabits a second, for ci/test-cluster. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { MESSAGE_BYTES = 4 << 20, IN_FLIGHT = 4 };

/* Seconds that `messages` messages from `sender` take, until the receiver has all of them. Several are in flight, so
   that the link never waits for an answer. */
static double transfer(char *buffer, int rank, int sender, int messages) {
    MPI_Barrier(MPI_COMM_WORLD);
    double begin = MPI_Wtime();
    MPI_Request requests[IN_FLIGHT];
    for (int i = 0; i < IN_FLIGHT; i++) requests[i] = MPI_REQUEST_NULL;
    for (int i = 0; i < messages; i++) {
        char *message = buffer + (size_t)(i % IN_FLIGHT) * MESSAGE_BYTES;
        MPI_Request *request = &requests[i % IN_FLIGHT];
        MPI_Wait(request, MPI_STATUS_IGNORE);
        if (rank == sender)
            MPI_Isend(message, MESSAGE_BYTES, MPI_CHAR, 1 - sender, 0, MPI_COMM_WORLD, request);
        else
            MPI_Irecv(message, MESSAGE_BYTES, MPI_CHAR, sender, 0, MPI_COMM_WORLD, request);
    }
    MPI_Waitall(IN_FLIGHT, requests, MPI_STATUSES_IGNORE);
    MPI_Barrier(MPI_COMM_WORLD);
    return MPI_Wtime() - begin;
}

int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    char *buffer = calloc(IN_FLIGHT, MESSAGE_BYTES);
    int messages = argc > 1 ? atoi(argv[1]) : 0;
    if (size != 2 || messages < 1 || !buffer) {
        fprintf(stderr, "usage: mpirun -np 2 mpi_bandwidth MESSAGES (of %d bytes)\n", MESSAGE_BYTES);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    for (int sender = 0; sender < 2; sender++) {
        transfer(buffer, rank, sender, 1); /* connects, and fills the link's token buckets no more than once */
        double seconds = transfer(buffer, rank, sender, messages);
        if (rank == 0) printf("%.0f\n", 8e-6 * MESSAGE_BYTES * messages / seconds);
    }
    free(buffer);
    return MPI_Finalize();
}
