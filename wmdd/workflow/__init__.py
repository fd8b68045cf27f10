"""What the Snakefile asks for: the experiment file, where files lie, which stages there are, what each job needs.

Imports `settings` and `base`, and from `generators` and `networks` the checks of files that a setting names.
"""
