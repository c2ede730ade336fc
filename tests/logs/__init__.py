"""Logs of steps, written, bounded, read and replayed."""
