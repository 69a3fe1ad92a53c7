"""libvirt-python; where it is missing, the error names the package that brings it instead of a traceback."""

from __future__ import annotations

from wire.errors import ErrorCode, MigrationError

try:
    import libvirt
except ImportError as _error:
    raise MigrationError(
        ErrorCode.PACKAGE_MISSING, {"module": "libvirt", "package": "python3-libvirt"}) from _error

__all__ = ["libvirt"]
