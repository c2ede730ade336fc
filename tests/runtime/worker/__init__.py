"""The worker lane, its parts and its servers."""
