"""Which variables are meant: selection and renaming."""
