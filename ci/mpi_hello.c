/* ci/setup compiles and runs this on two ranks: it ends with 0 only if they form one world. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
  int rank = -1, size = 0, sum = -1;
  if (MPI_Init(&argc, &argv) != MPI_SUCCESS) return 2;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  MPI_Finalize();
  if (size != 2 || sum != 1) {
    fprintf(stderr, "rank %d: expected one world of 2 ranks, found size %d and sum %d\n", rank, size, sum);
    return 1;
  }
  return 0;
}
