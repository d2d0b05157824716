"""Chooses: enumerates legal layouts, solves inside them, explains and emits the winner."""
