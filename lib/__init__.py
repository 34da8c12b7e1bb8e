"""Plumbing: flags, ranks, files, metrics, curves. A reader of the method never has to open it."""
