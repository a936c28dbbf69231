"""Models as transformers has them: the table of architectures, loading, where a model comes from.

Others use `family_of` and `register_architecture` (rows of the tables), `load` and `load_model`,
`resolve_device` and `free_memory`, `required_bos` and `require_positions`, and `hooks`.
"""
