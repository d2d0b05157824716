"""Families of techniques, one file each; found by listing this folder."""
