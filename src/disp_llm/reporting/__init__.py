"""What people see of results: progress bars, tables, and a page for each run.

Others use `progress_bar` and `say` of `terminal`, `Table`, the `show_*` functions, `run_table` and
`write_page`. Nothing here measures anything.
"""
