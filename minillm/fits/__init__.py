"""What a job will need, before it runs: memory, operations, hours and disk, from the shapes of its models."""
