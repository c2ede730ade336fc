"""Traces: schema, converters, generator, recording."""
