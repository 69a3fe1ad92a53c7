"""What CHECK_SOURCE, CHECK_LINK and CHECK_DESTINATION look at: each check a small function, in tables by host."""
