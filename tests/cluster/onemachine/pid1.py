"""First process of a mesh's machine: makes its namespaces, prepares its mounts, then reaps orphans until it is killed.

Everything of a mesh runs below this process in its PID, mount and network namespace. When it dies the kernel ends every process in there,
and with them go all mounts and both networks: nothing can be left behind, however rudely it was ended.
Runs as a script of its own (argument: the folder of the run), writes its PID as the machine outside sees it, then "ready".
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000

# Folders that programs of the node use whatever they are told; the machine has empty ones of its own there.
MOUNT_POINTS = (Path("/var/lib/cni"), Path("/var/lib/kubelet"))

# kubelet sets these for the whole machine unless they have the values that it wants; it is shown files that have them.
KUBELET_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", "--no-mtab", *map(str, arguments)], check=True)


def _prepare(run: Path) -> None:
    _mount("--make-rslave", "/")  # from the machine to here, and nothing back
    _mount("--make-rshared", "/")  # what kubelet asks for, inside
    _mount("-t", "proc", "proc", "/proc")
    for folder in ("/run", *MOUNT_POINTS):
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    (run / "log" / "node").mkdir(parents=True, exist_ok=True)
    _mount("--bind", run / "log" / "node", "/var/log")
    for name, value in KUBELET_SYSCTLS.items():
        if Path("/proc/sys", name).exists():
            shown = Path("/run/sysctl", name)
            shown.parent.mkdir(parents=True, exist_ok=True)
            shown.write_text(value + "\n")
            _mount("--bind", shown, Path("/proc/sys", name))


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    child = os.fork()
    if child:
        print(child, flush=True)
        return
    os.chdir("/")
    _prepare(Path(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    print("ready", flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main()
