"""The zoo of published records."""
