"""What can be written in a configuration, and what each stage gets from it."""
