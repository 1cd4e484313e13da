"""What others test with: the reference GEMM, timing without a GPU, the store contract suite, injected faults."""
