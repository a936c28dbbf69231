"""What people see of results: progress bars, tables, plots, and a page for each run.

Others use `progress_bar` of `terminal`, the `show_*` functions of `tables`, `markdown`, the
`draw_*` functions of the `*_plots` modules, and `write_run_page`. Nothing here measures anything.
"""
