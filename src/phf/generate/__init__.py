"""Writing with a model in a mode: the object that writes, its engines, and one sample token by token."""
