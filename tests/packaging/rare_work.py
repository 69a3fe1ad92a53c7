"""What an agent does rarely, and needs rights for: run on a node as a service with the rights of the agent's.

`rare_work.py PID USER`: the process of a QEMU, and the user id that it runs as. Prints what worked.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from host import connections, image, job_files
from host.process import tool_path


def main(qemu: int, user: int) -> None:
    """Do each."""
    links = [os.readlink(f"/proc/{qemu}/fd/{name}") for name in os.listdir(f"/proc/{qemu}/fd")]
    print("QEMU's sockets can be told:", any(link.startswith("socket:") for link in links))

    with socket.create_server(("127.0.0.1", 0)) as server, \
            socket.create_connection(server.getsockname(), timeout=10) as client:
        # As libvirt tells which process a QEMU is.
        Path("/run/libvirt/qemu/rare.pid").write_text(str(os.getpid()))
        print("connections that were found:", connections.cut_connections("rare", "127.0.0.1", "here"))
        try:
            client.recv(1)
        except ConnectionAbortedError:
            print("it was cut")

    print("QEMU may enter:", [path for path in ("/srv", "/root") if image.qemu_may_enter(path, (user, user), "here")])

    as_qemu = [tool_path("setpriv", "here"), f"--reuid={user}", f"--regid={user}", "--init-groups"]
    with subprocess.Popen([*as_qemu, "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        child.kill()
    print("a program of its user's was ended")

    os.setpriority(os.PRIO_PROCESS, 0, -10)
    print("answers come first")
    job_files.make_directory("/srv/made", "here")
    print(f"a directory has mode {os.stat('/srv/made').st_mode & 0o777:o}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
