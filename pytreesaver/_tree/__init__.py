"""Functions on trees: names, structure, leaves, selection, renaming and casting. No file I/O."""
