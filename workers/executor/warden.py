"""The warden: one small process per executor that is the parent of all job processes of a node.

Why it exists: forking from a process as large and threaded as a Ray worker is slow and unsafe; and a process of its
own can promise what the executor cannot: when the executor dies, however it dies, the warden sees its end of the
socket close and kills every process it ever started. It is a *subreaper*: whatever a job leaves behind, double
forks included, becomes the warden's child and cannot get away from it. If the warden itself is killed, the kernel
kills its direct children (PDEATHSIG), and the executor sweeps up the rest by their marker.

It speaks lines of JSON over a socket. In: ``["spawn", id, {...}]``, ``["signal", id, number]``. Out:
``["started", id, pid, at_ms]``, ``["failed", id, text]``, ``["hole", id, stream, start, end]`` and
``["exited", id, status, started_ms, ended_ms, cpu_ms, peak_kib]``, where status is that of ``waitpid``.

Output of jobs comes through pipes, not straight into files: a script that opens /dev/stderr again would cut a file
short, and a pipe bounds a flood exactly, by making the writer wait.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from workers.executor import logfile, procfs, warden_sandbox
from workers.executor.programs import find_program

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_READ_BYTES = 1 << 16
_FLOOD_PAUSE_S = 0.001
"""Wait after each read of a stream that is over its limit: bounds a flood to 64 MiB/s and its cost to a few %."""
_NARROW_SCAN = 64
"""So many process ids are looked at one by one before a scan of all of /proc is the cheaper way."""
_SHORT_MS = 1000
"""In less than this the ids of processes cannot have gone once round."""
_RETRY_S = 0.05
_DOUBT_MS = 500
"""For so long after a job's end an orphan of unknown origin holds its report back."""

_libc = ctypes.CDLL(None, use_errno=True)


def now_ms() -> int:
    """Return the wall clock in milliseconds."""
    return time.time_ns() // 1_000_000


class Source:
    """A pipe that the warden reads: an output stream of a job or, without a log, the outcome of its exec."""

    __slots__ = ("fd", "job", "log", "stream")

    def __init__(self, job: Job, fd: int, stream: int = -1, log: logfile.BoundedLog | None = None) -> None:
        self.job = job
        self.fd = fd
        """-1 once closed: the number may be another's by then."""
        self.stream = stream
        self.log = log


class Job:
    """One process that the warden has started."""

    __slots__ = (
        *("ended_ms", "error", "number", "outcome", "pid", "report", "root"),
        *("started_ms", "status", "streams", "supervised", "usage"),
    )

    def __init__(self, number: int, pid: int, spec: dict[str, Any], outcome_fd: int) -> None:
        self.number = number
        self.report = warden_sandbox.Report() if "sandbox" in spec else None
        self.supervised = bool(spec["front"])
        self.pid = pid
        self.root = spec["env"][procfs.MARKER]
        self.outcome = Source(self, outcome_fd)
        self.error = b""
        self.streams: list[Source] = []
        self.started_ms = now_ms()
        self.ended_ms = 0
        self.status = 0
        self.usage = (0, 0)

    def add_usage(self, usage: resource.struct_rusage) -> None:
        """Count what a process of it, and those that it waited for, have used."""
        cpu_ms, peak_kib = self.usage
        self.usage = (cpu_ms + int((usage.ru_utime + usage.ru_stime) * 1000), max(peak_kib, usage.ru_maxrss))


class Warden:
    """The loop: requests from the executor, output from jobs, ends of children."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.epoll = select.epoll()
        self.by_pid: dict[int, Job] = {}
        self.by_number: dict[int, Job] = {}
        self.by_root: dict[str, Job] = {}
        self.by_fd: dict[int, Source] = {}
        self.by_init: dict[int, Job] = {}
        """Jobs in sandboxes by the process that holds the sandbox together; its end is ours to wait for."""
        self.closing: dict[int, Job] = {}
        """Jobs whose first process has ended, by its id; something they started may still live."""
        self.suspects: dict[int, float] = {}
        """Orphans that belong to nobody as far as can be told, and when they were first seen (monotonic s)."""
        self.paused: collections.deque[tuple[float, Source]] = collections.deque()
        self.signals: list[tuple[int, int]] = []
        self.inbox = b""
        self.outbox = bytearray()
        self.wakeup_read, self.wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.scan_again_at = float("inf")
        self.full_scan_ready_at = 0.0

    def run(self) -> None:
        """Serve until the executor is gone, then kill everything."""
        signal.set_wakeup_fd(self.wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.link.setblocking(False)
        self.epoll.register(self.link, select.EPOLLIN)
        self.epoll.register(self.wakeup_read, select.EPOLLIN)
        try:
            while self._turn():
                pass
        finally:
            self._kill_all()

    def _turn(self) -> bool:
        ended = False
        for fd, _ in self.epoll.poll(self._timeout_s(), 256):
            if fd == self.link.fileno():
                if not self._receive():
                    return False
            elif fd == self.wakeup_read:
                os.read(fd, 4096)
                ended = True
            else:
                source = self.by_fd.get(fd)
                if source is not None:
                    self._read(source)
        if self.signals:
            self._send_signals()
        self._resume_paused()
        if ended:
            self._reap()
        if (self.closing or self.suspects) and (ended or time.monotonic() >= self.scan_again_at):
            self._close_ended()
        return self._flush()

    def _timeout_s(self) -> float | None:
        due = min(self.scan_again_at, self.paused[0][0] if self.paused else float("inf"))
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    # --- the link -----------------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        try:
            data = self.link.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        *lines, self.inbox = (self.inbox + data).split(b"\n")
        for line in lines:
            kind, number, value = json.loads(line)
            if kind == "spawn":
                self._spawn(number, value)
            else:
                self.signals.append((number, value))
        return True

    def _say(self, *message: Any) -> None:
        self.outbox += json.dumps(message, separators=(",", ":")).encode() + b"\n"

    def _flush(self) -> bool:
        # Blocking on purpose: an executor that does not read must not make the warden grow without bound.
        if not self.outbox:
            return True
        try:
            self.link.setblocking(True)
            self.link.sendall(self.outbox)
        except OSError:
            return False
        finally:
            self.link.setblocking(False)
        self.outbox.clear()
        return True

    # --- starting -----------------------------------------------------------------------------------------------

    def _spawn(self, number: int, spec: dict[str, Any]) -> None:
        try:
            program = find_program(spec["argv"][0], spec["env"].get("PATH", ""), spec["cwd"])
            if front := spec["front"]:
                program, spec["argv"] = front[0], [*front, *spec["argv"]]
            pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        except OSError as error:
            self._say("failed", number, error.strerror or str(error))
            return
        try:
            pid = os.fork()
        except OSError as error:
            for fd in sum(pipes, ()):
                os.close(fd)
            self._say("failed", number, f"the node could not start another process: {error.strerror}")
            return
        if pid == 0:
            _become(program, spec, pipes)
        for _, write_end in pipes:
            os.close(write_end)
        job = Job(number, pid, spec, pipes[2][0])
        self.by_pid[pid] = self.by_number[number] = self.by_root[job.root] = job
        for stream, path in enumerate((spec["stdout"], spec["stderr"])):
            fd = pipes[stream][0]
            job.streams.append(Source(job, fd, stream, logfile.BoundedLog(path, spec["log_limit"])))
        for source in (job.outcome, *job.streams):
            os.set_blocking(source.fd, False)
            self.by_fd[source.fd] = source
            self.epoll.register(source.fd, select.EPOLLIN)

    # --- output -------------------------------------------------------------------------------------------------

    def _read(self, source: Source) -> bool:
        """Read once from an output stream; return whether anything came."""
        log = source.log
        if log is None:
            self._read_outcome(source.job)
            return False
        try:
            data = os.read(source.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close_source(source)
            return False
        if log.write(data):
            self._say("hole", source.job.number, source.stream, *log.hole)
        if log.over_limit and not source.job.ended_ms:
            self.epoll.unregister(source.fd)
            self.paused.append((time.monotonic() + _FLOOD_PAUSE_S, source))
        return True

    def _resume_paused(self) -> None:
        now = time.monotonic()
        while self.paused and self.paused[0][0] <= now:
            _, source = self.paused.popleft()
            if source.fd >= 0:
                self.epoll.register(source.fd, select.EPOLLIN)

    def _read_outcome(self, job: Job) -> bool:
        """The pipe closes by itself when the exec has worked, and brings a text when it has not; a sandbox reports there.

        Returns whether there may be more to read.
        """
        try:
            said = os.read(job.outcome.fd, 4096)
        except BlockingIOError:
            return False
        if job.report is not None and job.report.takes(said):
            if job.report.add(said):
                self.by_init[job.report.init] = job
                self._say("started", job.number, job.pid, job.started_ms)
            return True
        job.error = said
        self._close_source(job.outcome)
        if not job.error and job.report is None:
            self._say("started", job.number, job.pid, job.started_ms)
        return False

    def _close_source(self, source: Source) -> None:
        if source.fd >= 0:
            del self.by_fd[source.fd]
            with contextlib.suppress(OSError):
                self.epoll.unregister(source.fd)
            os.close(source.fd)
            source.fd = -1

    # --- ending -------------------------------------------------------------------------------------------------

    def _send_signals(self) -> None:
        wanted, self.signals = self.signals, []
        forest = procfs.Forest(procfs.snapshot())
        orphans: dict[int, list[int]] = {}
        for process in forest.orphans(os.getpid(), self.by_pid):
            owner = self._owner(process)
            if owner is not None:
                orphans.setdefault(owner.number, []).append(process.pid)
        for number, signum in wanted:
            job = self.by_number.get(number)
            if job is None or job.pid in self.closing:
                continue
            if signum == signal.SIGKILL:
                with contextlib.suppress(OSError):
                    os.killpg(job.pid, signum)
            members = forest.members([job.pid, *orphans.get(number, ())])
            if job.supervised and signum != signal.SIGKILL:
                # Its first process tells the others; what it has put in sessions of their own is to outlast the command.
                init = job.report.init if job.report is not None else job.pid
                members = {pid for pid in members if forest.processes[pid].sid in {job.pid, init}}
            if job.report is not None and signum != signal.SIGKILL:
                # Bubblewrap itself would die of it, and take the job along.
                members.discard(job.pid)
            for pid in members:
                with contextlib.suppress(OSError):
                    os.kill(pid, signum)

    def _owner(self, process: procfs.Process) -> Job | None:
        job = self.by_pid.get(process.sid) or self.by_pid.get(process.pgid)
        job = job or self.by_init.get(process.pid) or self.by_init.get(process.sid)
        return job or self.by_root.get(procfs.marker_of(process.pid) or "")

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.suspects.pop(pid, None)
            held = self.by_init.pop(pid, None)
            if held is not None:
                held.add_usage(usage)
                continue
            job = self.by_pid.get(pid)
            if job is None or pid in self.closing:
                continue
            while job.outcome.fd >= 0 and self._read_outcome(job):
                pass
            self._close_source(job.outcome)
            job.status, job.ended_ms = status, now_ms()
            job.add_usage(usage)
            self.closing[pid] = job

    def _close_ended(self) -> None:
        """Report each ended job of which nothing lives on; kill what does."""
        orphans = self._find_orphans()
        if orphans is None:
            return
        # What held an ended sandbox together knows what its job has used, and tells us with its own end.
        blocked = {job.pid for init, job in self.by_init.items() if job.pid in self.closing and _is_ours(init)}
        now = time.monotonic()
        for process in orphans:
            job = self._owner(process)
            if job is not None and job.pid not in self.closing:
                continue
            if job is None:
                # It shed its session and its environment, or is in the midst of an exec: look again, then end it.
                blocked.update(pid for pid, one in self.closing.items() if now_ms() - one.ended_ms < _DOUBT_MS)
                if now - self.suspects.setdefault(process.pid, now) < _RETRY_S:
                    continue
            else:
                blocked.add(job.pid)
                with contextlib.suppress(OSError):
                    os.killpg(job.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        for pid in [pid for pid in self.closing if pid not in blocked]:
            self._finish(self.closing.pop(pid))
        self.scan_again_at = now + _RETRY_S if self.closing or self.suspects else float("inf")

    def _find_orphans(self) -> list[procfs.Process] | None:
        """Return the warden's children that it did not start; None when it is too early for another full scan.

        Whatever an ended job left behind is a child of ours or descends from one, and its id was given out after
        the job's own. For a job of a few milliseconds that leaves a handful of ids to look at.
        """
        me = os.getpid()
        last = procfs.last_pid()
        short = all(
            0 <= last - job.pid <= _NARROW_SCAN and job.ended_ms - job.started_ms < _SHORT_MS
            for job in self.closing.values()
        )
        if short and not self.suspects:
            candidates = [found for pid in range(min(self.closing), last + 1) if (found := procfs.read_process(pid))]
        else:
            now = time.monotonic()
            if now < self.full_scan_ready_at:
                self.scan_again_at = self.full_scan_ready_at
                return None
            candidates = list(procfs.snapshot().values())
            done = time.monotonic()
            self.full_scan_ready_at = done + 4 * (done - now)
        return [one for one in candidates if one.ppid == me and one.pid not in self.by_pid and not one.zombie]

    def _finish(self, job: Job) -> None:
        for source in job.streams:
            # Everything that could write is dead: what the pipe still holds is all there will ever be.
            while source.fd >= 0 and self._read(source):
                pass
            self._close_source(source)
            if source.log is not None:
                source.log.close()
        del self.by_pid[job.pid], self.by_number[job.number], self.by_root[job.root]
        if job.report is not None:
            self.by_init.pop(job.report.init, None)
            job.error = job.error or job.report.failure(job.status, job.streams[1].log)
            job.status = warden_sandbox.true_status(job.status)
        if job.error:
            self._say("failed", job.number, job.error.decode("utf-8", "replace"))
        else:
            self._say("exited", job.number, job.status, job.started_ms, job.ended_ms, *job.usage)

    def _kill_all(self) -> None:
        """Kill all children, then those that they leave to us, until there are none."""
        while True:
            me = os.getpid()
            for pid in self.by_pid:
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            for process in procfs.snapshot().values():
                if process.ppid == me and not process.zombie:
                    with contextlib.suppress(OSError):
                        os.kill(process.pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def _is_ours(pid: int) -> bool:
    """Whether a process is a child of the warden that has not been waited for."""
    found = procfs.read_process(pid)
    return found is not None and found.ppid == os.getpid()


def _become(program: str, spec: dict[str, Any], pipes: list[tuple[int, int]]) -> None:
    """In the child: turn into the job. Never returns."""
    error_fd = pipes[2][1]
    try:
        os.setsid()
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[1][1], 2)
        _set_limits(spec)
        os.chdir(spec["cwd"])
        argv, env = spec["argv"], spec["env"]
        if "sandbox" in spec:
            argv, env = warden_sandbox.enter(spec, program, error_fd)
            program = argv[0]
        os.execve(program, argv, env)  # noqa: S606
    except OSError as error:
        text = error.strerror or str(error)
        if error.errno == errno.ENOEXEC:
            text = "it is neither a program for this machine nor a script that begins with #!"
        elif error.errno == errno.ENOENT:
            text = "the interpreter that its first line names is not on the node"
        os.write(error_fd, f"cannot run {spec['argv'][0]!r}: {text}".encode())
    except BaseException as error:  # anything else must not return into the warden's loop in a second process
        os.write(error_fd, f"cannot run {spec['argv'][0]!r}: {error!r}".encode())
    os._exit(127)


def _set_limits(spec: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65_536, hard) if hard != resource.RLIM_INFINITY else 65_536, hard))
    if spec["data_limit"]:
        resource.setrlimit(resource.RLIMIT_DATA, (spec["data_limit"], spec["data_limit"]))
    # When memory runs out, the kernel shall take a job before it takes the node's own processes.
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, b"1000")
        os.close(fd)


def main(fd: int, groups: Sequence[str] = ()) -> None:
    """Run the warden on the socket ``fd``; at its end it removes the executor's control groups with all below them."""
    link = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refuses to make the warden a subreaper")
    # Signals meant for the executor's terminal or group are none of ours; its death reaches us over the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    gc.collect()
    gc.freeze()
    gc.disable()
    Warden(link).run()
    warden_sandbox.remove_groups(groups)


if __name__ == "__main__":
    main(int(sys.argv[1]))
