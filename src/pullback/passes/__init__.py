"""The passes, one file each; `compilation` lists them in order."""
