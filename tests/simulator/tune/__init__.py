"""The tuner and its verdict."""
