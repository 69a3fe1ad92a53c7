"""What an agent does for each command: a module for each, named after its command, with one function `run`."""
