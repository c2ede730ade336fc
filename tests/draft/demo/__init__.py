"""The laptop run."""
