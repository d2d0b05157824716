"""Measures: Triton kernels and torch probes; the only folder that imports torch or triton."""
