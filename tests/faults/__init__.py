"""Faults at random moments of a migration, on the lab's real hosts: whatever breaks, section 6 of the design holds."""
