"""One executor, here and on a Ray cluster."""
