"""The packages, the service and what else brings VMMigration onto a machine, each tried on a machine of its own."""
