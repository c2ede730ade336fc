"""Prompts, samples and cached states, killed and resumed."""
