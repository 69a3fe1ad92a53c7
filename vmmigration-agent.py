#!/usr/bin/env python3
"""The agent's command: start it on each KVM node, by hand or by systemd."""

import sys

from agent import main

if __name__ == "__main__":
    sys.exit(main())
