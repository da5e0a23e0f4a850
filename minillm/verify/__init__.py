"""Whether a finished run is what its records say: `minillm verify results/RUN`."""
