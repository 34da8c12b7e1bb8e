"""The set `arithmetic`: its questions, its teacher, and the weights of its tiny model."""
