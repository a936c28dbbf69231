"""Code that several methods and baselines share; `baseline` holds what each baseline declares."""
