"""What a person looks at: the frame of results, tables, charts, the page, comparisons, the state of a run.

`results` has the data frame of all students, and in `MEASURES` the columns of every table. Tables are made of it in
`accuracy_tables` and `tables`, and written by `render`; `page/` joins all to one file. It computes no stage. Imports
`workflow`, `artifacts` and the rooms below them.
"""
