"""The tiny model: its weights, what builds them, and the scripted teacher of its cold start."""
