"""One run of this suite on a GPU at a time, on one machine; other programs are not held off.

The lock is a Unix socket in Linux's abstract namespace (unix(7)): it is in no folder, so that nobody can
plant a link, no user's permissions matter and nothing stays behind, and the kernel frees it with the process
that holds it, however that ends. Containers with a network namespace of their own do not see it.
"""

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator

from bench.errors import InfrastructureError

_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group
_PATIENCE_S = 1.0


@contextlib.contextmanager
def hold_gpu(uuid: str) -> Iterator[None]:
    """Hold a GPU or MIG slice meanwhile.

    Raises ``InfrastructureError`` when another run holds it, in this process or another.
    """
    name = f"\0finetune-bench/gpu/{uuid}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(name)
            lock.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InfrastructureError(
                    f"{uuid} cannot be locked against other runs here ({error.strerror}); allow Unix sockets "
                    "in this sandbox"
                ) from error
            raise InfrastructureError(
                f"another bench run{_holder(name)} uses {uuid}, and two would measure each other; wait until "
                "it has ended, or choose another GPU with CUDA_VISIBLE_DEVICES"
            ) from None
        yield


def _holder(name: str) -> str:
    """Return which process holds the lock, if it can be asked."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as question:
        question.settimeout(_PATIENCE_S)
        question.connect(name)
        answer = question.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid: int = _CREDENTIALS.unpack(answer)[0]
        if pid > 0:
            return f" (process {pid})"
    return ""
