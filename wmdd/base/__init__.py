"""What every room may use: errors, units, keyed randomness, progress, threads, the notice of a scheduler.

Imports no other room.
"""
