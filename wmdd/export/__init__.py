"""Distilled sets for others: written in layouts that other libraries read, with a dataset card, and loaded again.

Imports `stages`, `workflow` and the rooms below them.
"""
