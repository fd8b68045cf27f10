"""What an experiment costs before it runs, and what its jobs ask a scheduler for.

torch is imported only to count a network that can't be counted by hand: one of a library, in a plan.

Imports `workflow`, `settings` and the rooms below them.
"""
