"""Fits to logs whose truth is known."""
