"""Shows results: progress bars, tables, and a page for each run. Nothing here measures anything.

Other packages use `progress_bar` and `say` of `terminal`, `Table`, the `show_*` functions,
`run_table` and `write_page`.
"""
