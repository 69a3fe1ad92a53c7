"""All tests: tests/unit needs neither root nor network, tests/lab brings up real hosts."""
