"""The simulator's laws, and what its commands print and leave."""
