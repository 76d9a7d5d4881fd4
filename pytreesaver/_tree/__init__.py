"""Pure functions on trees: names, structure, leaves, selection, renaming, casting. No file, clock or device."""
