"""The compiled replica, against the same law in plain Python."""
