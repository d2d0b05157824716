"""Fits and checks: measured kernels to calibration files, predictions against published numbers."""
