"""Models of transformers: the table of architectures, loading, and provenance.

Used elsewhere: `family_of` and `register_architecture` (rows of the table), `load`, `load_model`,
`resolve_device`, `free_memory`, `required_bos`, `require_positions`, and `hooks`.
"""
