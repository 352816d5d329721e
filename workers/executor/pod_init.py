"""The first process of a job's pod: starts the command, hands on its output, and ends it when told or when left alone.

It is run by whatever Python the image has, from a folder that the executor shares with the pod, so it uses the standard
library alone. In its control folder it finds ``job.json`` (what to run), ``alive`` (which its keeper touches) and, when the
command is to end, ``stop`` with the number of a signal. All that works without the Kubernetes API, so that a job can be stopped
while that is away, and does not outlive a node whose keeper has died.

It is no wall: what stands between the job and the node is the pod.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any

from workers.executor import pod_frames
from workers.executor.programs import find_program

LOOK_S = 0.5
"""Between two looks at the control folder."""
MEET_S = 5.0
"""So long the keeper's first sign of life is waited for; on a mount that shows none, the command begins without."""
_FEEL_S = 0.02
_PR_SET_DUMPABLE = 4
_READ_BYTES = 1 << 16
_PATIENCE_S = 0.2
"""Output without a newline waits for one so long."""
_NOT_RUN = 127


class Init:
    """One command from its start to its end."""

    def __init__(self, control: str) -> None:
        self.control = control
        with open(f"{control}/job.json", encoding="utf-8") as file:
            self.job: dict[str, Any] = json.load(file)
        self.writer = pod_frames.Writer()
        self.pid = 0
        self.status: int | None = None
        self.cpu_ms = 0
        self.peak_kib = 0
        self.streams: dict[int, bytes] = {}
        self.told = 0
        self.alive_seen: int | None = None
        self.alive_moved = False
        self.alive_at = time.monotonic()
        self.flush_at = float("inf")
        self.wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # What the kubelet sends when it evicts or deletes a pod.
        signal.signal(signal.SIGTERM, lambda number, _: self.send(number))

    def run(self) -> int:
        """Return the exit code for the container."""
        self._meet_keeper()
        if not self._start():
            return _NOT_RUN
        look_at = 0.0
        while self.status is None:
            now = time.monotonic()
            if now >= look_at:
                self._look()
                look_at = now + LOOK_S
            self._turn(min(look_at, self.flush_at) - now)
        # The container's end kills these too, but they could go on writing until then.
        self.send(signal.SIGKILL)
        while self.streams and self._turn(0):
            pass
        self._say(self.writer.flush())
        self._say(self.writer.line(pod_frames.USED, b"%d %d" % (self.cpu_ms, self.peak_kib)))
        killed = os.WIFSIGNALED(self.status)
        return 128 + os.WTERMSIG(self.status) if killed else os.WEXITSTATUS(self.status)

    def _meet_keeper(self) -> None:
        """Wait until the keeper has touched its file: what moves once will be missed when it moves no more."""
        until = time.monotonic() + MEET_S
        while self.job["switch_ms"] and not self.alive_moved and time.monotonic() < until:
            self._feel()
            time.sleep(_FEEL_S)

    def send(self, number: int) -> None:
        """Send a signal to all processes but this one; of a ray job, whose Ray is to outlast the command, to the command only."""
        with contextlib.suppress(OSError):
            if os.getpid() == 1 and (number == signal.SIGKILL or not self.job.get("supervised")):
                os.kill(-1, number)
            elif self.pid:
                os.killpg(self.pid, number)

    def _say(self, data: bytes) -> None:
        while data:
            data = data[os.write(1, data) :]

    # --- the command ----------------------------------------------------------------------------------------------

    def _start(self) -> bool:
        job = self.job
        env: dict[str, str] = job["env"]
        if job.get("own_master"):
            env["MASTER_ADDR"] = os.environ.get("SUANLI_POD_IP") or "127.0.0.1"
        try:
            program = find_program(job["argv"][0], env.get("PATH", ""), job["cwd"])
        except OSError as error:
            self._say(self.writer.line(pod_frames.FAILED, _bytes(error.strerror or str(error))))
            return False
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        self.pid = os.fork()
        if self.pid == 0:
            _become(program, job, env, [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        with os.fdopen(pipes[2][0], "rb") as outcome:
            why = outcome.read()
        if why:
            os.waitpid(self.pid, 0)
            self._say(self.writer.line(pod_frames.FAILED, why))
            return False
        for fd, stream in ((pipes[0][0], pod_frames.STDOUT), (pipes[1][0], pod_frames.STDERR)):
            os.set_blocking(fd, False)
            self.streams[fd] = stream
        self._say(self.writer.line(pod_frames.STARTED, b"%d" % self.pid))
        return True

    def _turn(self, timeout_s: float) -> bool:
        """Wait for output or an end; return whether any output came."""
        ready, _, _ = select.select([*self.streams, self.wakeup], [], [], max(0.0, timeout_s))
        came = False
        for fd in ready:
            if fd == self.wakeup:
                os.read(fd, 4096)
            else:
                came = self._read(fd) or came
        if time.monotonic() >= self.flush_at:
            self._say(self.writer.flush())
            self.flush_at = float("inf")
        self._reap()
        return came

    def _read(self, fd: int) -> bool:
        data = os.read(fd, _READ_BYTES)
        if not data:
            os.close(fd)
            del self.streams[fd]
            return False
        self._say(self.writer.output(self.streams[fd], data))
        if not data.endswith(b"\n") and self.flush_at == float("inf"):
            self.flush_at = time.monotonic() + _PATIENCE_S
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.cpu_ms += int((usage.ru_utime + usage.ru_stime) * 1000)
            self.peak_kib = max(self.peak_kib, usage.ru_maxrss)
            if pid == self.pid:
                self.status = status

    # --- the control folder ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        with contextlib.suppress(OSError, ValueError), open(f"{self.control}/stop", encoding="ascii") as file:
            wanted = int(file.read())
            if wanted != self.told:
                self.told = wanted
                self._say(self.writer.line(pod_frames.TOLD, b"%d" % wanted))
                self.send(wanted)
        if self.job["switch_ms"] and self._feel():
            self._say(self.writer.output(pod_frames.STDERR, b"suanli: nobody watches over this pod any more\n"))
            self.send(signal.SIGKILL)

    def _feel(self) -> bool:
        """Look for a sign of life; whether there has been none for too long."""
        moved = -1
        with contextlib.suppress(OSError):
            moved = os.stat(f"{self.control}/alive").st_mtime_ns
        now = time.monotonic()
        if moved != self.alive_seen:
            # A mount on which nothing ever moves tells nothing, so it ends nothing.
            self.alive_moved = self.alive_moved or self.alive_seen is not None
            self.alive_seen, self.alive_at = moved, now
            return False
        return self.alive_moved and (now - self.alive_at) * 1000 > self.job["switch_ms"]


def _become(program: str, job: dict[str, Any], env: dict[str, str], fds: list[int]) -> None:
    """In the child: turn into the command. Never returns."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if job["file_limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], job["file_limit"]))
        os.chdir(job["cwd"])
        os.execve(program, job["argv"], env)  # noqa: S606
    except OSError as error:
        text = error.strerror or str(error)
        if error.errno == errno.ENOEXEC:
            text = "it is neither a program for this machine nor a script that begins with #!"
        elif error.errno == errno.ENOENT:
            text = "the interpreter that its first line names is not in the pod's image"
        os.write(fds[2], _bytes(f"cannot run {job['argv'][0]!r}: {text}"))
    except BaseException as error:  # anything else must not return into the parent's loop in a second process
        os.write(fds[2], _bytes(f"cannot run {job['argv'][0]!r}: {error!r}"))
    os._exit(_NOT_RUN)


def _bytes(text: str) -> bytes:
    return text.replace("\n", " ").encode("utf-8", "replace")[:2000]


def main(control: str) -> None:
    """Run the command of a control folder and end as it ends."""
    # The job is the same user: it may not look into this process.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    sys.exit(Init(control).run())
