"""Others' methods to choose masks, a file each: `METHOD` has name, title, reference and function.

Each is an entry point of the group `disp_llm.methods`.
"""
