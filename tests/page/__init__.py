"""A run's page as a browser shows it."""
