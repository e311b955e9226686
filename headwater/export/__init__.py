"""Models written in the formats of other programs: one file a format, each with write(path, config, tensors)."""
