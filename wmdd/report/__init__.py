"""What a person looks at: the frame of results, tables, charts, the page, comparisons, the state of a run.

Imports `workflow`, `artifacts` and the rooms below them; it reads results and computes no stage.
"""
