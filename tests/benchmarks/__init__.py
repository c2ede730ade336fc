"""Of the benchmarks, what a published number hangs on."""
