"""Recordings of servers that never were, judged by the command."""
