"""The tables of ``docs/validation.md``."""


def write_page(*a):
    pass
