"""The half of the sandbox that lives inside: a fork server that locks itself in, and its runs."""
