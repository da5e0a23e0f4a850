"""One file a measurement: what can be configured of it, and the settings that its stage gets.

So an edited measurement re-runs no other.  `of` cuts the settings out of a checked configuration (experiment.Experiment, which imports
the sections, so that the type cannot be named here).
"""
