"""The half of the sandbox that lives inside."""
