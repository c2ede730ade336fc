"""Windows and what they are worth."""
