"""The capacity searches."""
