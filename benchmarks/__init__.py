"""Published sets and the graders. tasks.py imports them where a question needs them."""
