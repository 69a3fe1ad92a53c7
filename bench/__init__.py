"""Measurements. Each module that is a command of its own prints a table of goals and figures: `script/bench`."""
