"""What several methods and baselines share; `baseline` is what each baseline declares of itself."""
