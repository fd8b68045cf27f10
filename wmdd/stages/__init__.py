"""The science, a module a stage: arrays and settings in, arrays out. No path, no workflow, no tracker.

Imports `generators`, `networks`, `transport` and the rooms below them.
"""
