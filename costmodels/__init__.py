"""Prices: pure functions from ops to seconds, bytes and dollars."""
