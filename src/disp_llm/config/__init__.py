"""What can be asked: one file a command, groups of settings that commands share, recipes.

Others use the configurations, `InputError`, and the names of sites, estimators and methods. Nothing
here imports torch.
"""
