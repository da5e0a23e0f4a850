"""`make gpu-check`: whether what holds on a CPU holds on this GPU; one check a file, each its own process."""
