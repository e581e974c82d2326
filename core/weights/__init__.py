"""Weight files: what there is, where it comes from, and how it becomes networks."""
