"""The profiler, on made-up points and on a server."""
