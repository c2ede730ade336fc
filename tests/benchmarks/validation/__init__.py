"""The validation studies and their page."""
