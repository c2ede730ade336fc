"""Tests of sglang_dspark.draft.exchange."""
