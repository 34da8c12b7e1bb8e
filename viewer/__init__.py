"""See it: one question's run and a whole training, as text and as pages. Not needed to train."""
