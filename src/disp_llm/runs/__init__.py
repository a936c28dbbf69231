"""What a run leaves: its folder and files, its settings, where its figures come from.

Others use `Job` (what a long task runs with), `Run` (the paths of one folder), the typed results,
and the functions of `files` that write whole files or none.
"""
