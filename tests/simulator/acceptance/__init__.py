"""Acceptance profiles: law, files, and the figures they are fitted to."""
