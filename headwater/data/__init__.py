"""Data: from files to batches, in small functions that take an iterator and give one."""
