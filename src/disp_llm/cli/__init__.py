"""The command line: arguments -> a configuration -> the command -> tables or one JSON object.

`main` is the entry point. Each command is a function of `commands`, which returns what `--json`
prints. Nothing heavy is imported before the arguments are known to be well-formed.
"""
