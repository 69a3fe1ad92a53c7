"""Unit tests: no root, no network beyond loopback, no libvirt but where a module says so."""
