"""A Python that starts at once: each process is a fork of one that has imported the heavy packages, and nothing of wmdd.

Imports take nearly all CPU seconds of a small job and of a call of Snakemake. `python()` is the path of a program that does
with `-m MODULE ARGUMENTS` what an interpreter does, in a process, folder and environment of its own; with anything else it
is the interpreter. Snakemake, when started by it, starts its jobs by it. When the program is killed, its process is too.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

HEAVY = (
    "altair", "cyclopts", "h5py", "itables", "jinja2", "ot", "pandas", "PIL.Image", "pydantic", "safetensors.torch",
    "scipy.optimize", "scipy.spatial", "sklearn.cluster", "sklearn.datasets", "sklearn.manifold", "snakemake.cli", "tabulate",
    "torch", "torch.distributed", "torch.func", "torchvision", "tqdm", "vl_convert", "yaml",
)  # fmt: skip
PROGRAM = """#!{interpreter} -IS
import json, os, socket, sys
if sys.argv[1] != "-m":
    os.execv("{interpreter}", ["{interpreter}", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8)], [0, 1, 2])
    server.sendall(request)
    sys.exit(server.recv(1)[0])
"""


@cache
def python() -> str:
    """Return the path of the program; the process that it forks from ends with this one, and removes its folder then."""
    folder = Path(tempfile.mkdtemp(prefix="wmdd-python-"))
    program, address = folder / "python", folder / "socket"
    program.write_text(PROGRAM.format(interpreter=sys.executable, address=address))
    program.chmod(0o755)
    pipe, environment = subprocess.PIPE, os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    server = subprocess.Popen([sys.executable, __file__, str(folder)], env=environment, stdin=pipe, stdout=pipe)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return str(program)


def main(folder: Path) -> None:
    """Fork for each request; in the fork, do as the interpreter would."""
    for module in HEAVY:
        importlib.import_module(module)
    gc.freeze()  # a collection in a fork would touch, and so copy, all pages
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            client = listener.accept()[0]
            if not os.fork():
                if os.fork():  # nobody waits for a grandchild
                    os._exit(0)
                break
            client.close()
            os.wait()
        else:
            shutil.rmtree(folder)
            return
    length, streams, *_ = socket.recv_fds(client, 8, 3)
    module_arguments, place, environment = json.loads(client.makefile("rb").read(int.from_bytes(length)))
    if job := os.fork():
        _tell(client, job)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    client.close()
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.executable = module_arguments, str(folder / "python")
    sys.path[:1] = [place, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    os._exit(_run(module_arguments[0]))


def _run(module: str) -> int:
    """Run a module as a program and return its exit status; the interpreter is not taken down, which costs a second."""
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _tell(client: socket.socket, job: int) -> None:
    """Tell the client how its job ended; when the client is gone, end the job."""

    def follow() -> None:
        with suppress(ProcessLookupError, OSError):  # it has ended in this moment
            if not client.recv(1):
                os.kill(job, signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    with suppress(OSError):
        client.send(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
