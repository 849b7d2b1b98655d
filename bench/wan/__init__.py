"""A wide-area network on one machine, and the programs that the benchmarks run in it."""
