"""The command line: arguments in, one call of a stage or a report, artifacts out; a file a family of commands.

Imports every room below it; reading arguments never imports torch.
"""
