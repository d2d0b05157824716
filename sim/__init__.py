"""Plays: discrete-event simulation of steps and requests in time."""
