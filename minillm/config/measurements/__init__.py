"""One file per measurement: what can be configured, and the settings that its stage gets.

So editing one measurement re-runs no other.  `of` cuts the settings out of a checked configuration: an
experiment.Experiment, which imports the sections, so that the type cannot be named here.
"""
