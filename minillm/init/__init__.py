"""`minillm init`: looks at two models and at rows, and writes a configuration to begin with."""
