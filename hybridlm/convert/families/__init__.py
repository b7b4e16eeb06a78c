"""A file a family: the keys of its config.json and its table of tensors, in both directions."""
