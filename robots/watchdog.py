"""A process of its own that leaves the arm safe when the one that moves it is gone, however it went.

A process that is killed hard (SIGKILL, out of memory, a crash in a library) runs no line of its own any more; its
servos go on pulling to the last goal. This one is started before anything moves, sits in a session of its own, where
no signal of the terminal reaches it, and waits for its parent to end. It cannot help against what stops both: a power
cut of the computer, or an unplugged cable. For those the last goal is near where the arm was seen last
(`robots.safety.Limiter`), and the servos' own overload protection is set by LeRobot.

One program at a time may move an arm: a lock of its port is held by the one that does, and by this process until it
has acted, or it would take the torque off the next one.
"""

import fcntl
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from deas_vla.errors import UserError

# How often the child looks whether its parent is still there, besides its end of the pipe.
POLL_S = 0.2
READY, DISMISSED = "ready\n", "dismissed\n"


class Watchdog:
    """The parent's side.

    Args:
        device: what `Robot.rescue` says of it; it need not be connected yet.
        hold_s: seconds that the arm holds its position before its torque goes off.
        torque_off: False: it goes on holding.

    Raises:
        UserError: if the process does not start, or another program or its watchdog has this port.
    """

    def __init__(self, device: dict, hold_s: float, torque_off: bool = True):
        task = {"device": device, "hold_s": hold_s, "torque_off": torque_off}
        # All of the search path: what reaches the device may be a file that a user named.
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"), *sys.path)))
        self.lock = _locked(device["port"])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "robots.watchdog"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
            pass_fds=[self.lock.fileno()],
            text=True,
        )
        try:
            self._say(json.dumps(task) + "\n")
            ready = self.process.stdout.readline() == READY
        except OSError:
            ready = False
        if not ready:
            self.process.kill()
            self.process.wait()
            self.lock.close()
            raise UserError("the watchdog of the arm does not start (its message is above); nothing has moved")

    def require_alive(self) -> None:
        """Raises UserError if the watchdog is gone: without it nothing may move."""
        if self.process.poll() is not None:
            raise UserError("the watchdog of the arm has died; the arm is not moved without it")

    def dismiss(self) -> None:
        """Ends it: the arm was left safe already."""
        if self.process.poll() is None:
            try:
                self._say(DISMISSED)
                self.process.wait(timeout=5)
            except (OSError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.lock.close()

    def _say(self, text: str) -> None:
        self.process.stdin.write(text)
        self.process.stdin.flush()


def _locked(port: str) -> BinaryIO:
    """The lock of a port; it is let go when all who hold the open file have closed it or ended, however."""
    path = Path(tempfile.gettempdir(), f"deas_vla{os.path.realpath(port).replace('/', '-')}.lock")
    try:
        # Not `touch`, nor for writing: the file may be another user's.
        if not path.exists():
            os.close(os.open(path, os.O_CREAT, 0o644))
        lock = path.open("rb")
    except OSError as error:
        raise UserError(f"the lock of {port} cannot be opened: {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise UserError(
            f"another program moves the arm on {port}, or was killed and its watchdog is about to turn the torque off: "
            "support the arm, wait some seconds and try again"
        ) from error
    return lock


def watch() -> None:
    """The child's side: reads its task, waits, and acts if its parent goes without a word."""
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    task = json.loads(sys.stdin.readline())
    # Imported now: whatever is missing has to be found out before anything moves.
    device, *_ = [importlib.import_module(name) for name in task["device"]["modules"]]
    print(READY, end="", flush=True)
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            if sys.stdin.readline() == DISMISSED:
                return
            break
    leave_safe(task, device)


def leave_safe(task: dict, device: ModuleType) -> None:
    """Holds the arm, and turns its torque off after a while."""
    try:
        arm = device.open_device(task["device"])
    except OSError as error:
        print(f"watchdog: the arm cannot be reached ({error}): cut its power", file=sys.stderr, flush=True)
        return
    arm.hold()
    if task["torque_off"]:
        time.sleep(task["hold_s"])
        left = arm.torque_off()
        how = f"torque off but for {', '.join(left)}: cut the arm's power" if left else "torque off"
    else:
        how = "the arm holds its position"
    print(f"watchdog: the program that moved the arm is gone; {how}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    watch()
