"""Distilled sets for others, written in layouts that other libraries read and loaded again; and of others, as they saved them.

Imports `stages`, `workflow` and the rooms below them.
"""
