"""Environments in worker processes: batched calls, any number of slots, states that can be saved and restored.

A slot is one running episode: where an environment is the same for all scenes of a task, a saved state of a few kB.
Every state can be saved to the caller and restored in any slot, which is how candidates are compared: restore it into
one slot a candidate, play a different chunk in each, go on with the policy.

gymnasium.vector.AsyncVectorEnv does not fit: it holds one environment and one process a slot (here 16 slots and up to
32 branches share two processes), steps all of them by one action, resets by itself, and neither saves nor restores.

Workers are plain ``python -m`` processes on a socket: the script that starts them is not imported again, needs no
``__main__`` guard, and works under ``accelerate launch`` and pytest. A worker whose parent is gone reads the end of
its socket and leaves. Messages are pickled: both ends are processes of this program, and nothing comes from outside.
"""

import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from deas_vla.envs.protocol import ChunkResult, Simulator, require_frame
from deas_vla.envs.registry import SIMULATORS, EnvConfig, contract_of, make_env
from deas_vla.errors import UserError

EXPERT_SLOT = -1
Call = tuple[int, str, tuple]  # slot, method and arguments
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


class EnvWorkers(AbstractContextManager):
    """Several environments of one task, called in batches; use as a context manager.

    Without worker processes everything runs in the calling one. Raises UserError if the configuration does not fit;
    whatever only the simulator can tell is raised by the first call.
    """

    def __init__(self, config: EnvConfig, workers: int):
        if workers < 0:
            raise UserError(f"the number of simulator workers cannot be {workers}")
        self.config = config
        self.contract = contract_of(config)
        self._local = _Host(config) if workers == 0 else None
        self._workers = [_Worker(config, number) for number in range(workers)]
        self._closed = self._streaming = False

    @cached_property
    def horizon(self) -> int:
        """Time limit of an episode in control steps."""
        return self._run([(0, "horizon", ())])[0]

    def reset(self, slots: Sequence[int], scenes: Sequence[int]) -> list[dict]:
        """Starts a scene in each slot; returns the first frames (``images``, ``state``, ``instruction``)."""
        return self._run([(slot, "reset", (int(scene),)) for slot, scene in zip(slots, scenes, strict=True)])

    def play(self, slots: Sequence[int], chunks: Sequence[np.ndarray], frame_every: int = 0) -> list[ChunkResult]:
        """Plays one chunk of (n, A) commands in each slot; see `Simulator.play`."""
        pairs = zip(slots, chunks, strict=True)
        return self._run([(slot, "play", (np.asarray(chunk, np.float32), frame_every)) for slot, chunk in pairs])

    def save(self, slots: Sequence[int]) -> list[object]:
        """The complete states of these slots."""
        return self._run([(slot, "save", ()) for slot in slots])

    def restore(self, slots: Sequence[int], states: Sequence[object]) -> None:
        """Puts saved states into slots, whichever slots and workers they came from."""
        self._run([(slot, "restore", (state,)) for slot, state in zip(slots, states, strict=True)])

    def expert_episodes(
        self, scenes: Sequence[int], seeds: Sequence[int], frame_every: int = 0
    ) -> Iterator[tuple[dict, ChunkResult]]:
        """Whole episodes of the scripted expert, in order, each with its first frame; slots are left alone.

        Each has a scene and a seed of the expert's imperfections; `frame_every` as in `play`.
        """
        pairs = zip(scenes, seeds, strict=True)
        return self._stream([(EXPERT_SLOT, "expert", (int(scene), int(seed), frame_every)) for scene, seed in pairs])

    def close(self) -> None:
        """Ends the workers; nothing can be called after it."""
        if self._closed:
            return
        self._closed = True
        for host in [self._local] if self._local else self._workers:
            host.close()

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, calls: list[Call]) -> list:
        """Runs calls, those of one worker in one message; results in the calls' order."""
        if self._closed:
            raise RuntimeError("these environments are closed")
        if self._local is not None:
            return self._local.run(calls)
        if self._streaming:
            raise RuntimeError("expert episodes are under way: take them all, or close their iterator, first")
        parts: dict[_Worker, list[int]] = {}
        for i, (slot, _, _) in enumerate(calls):
            parts.setdefault(self._workers[slot % len(self._workers)], []).append(i)
        results: list = [None] * len(calls)
        try:
            for worker, part in parts.items():
                worker.send([calls[i] for i in part])
            for worker, part in parts.items():
                for i, result in zip(part, worker.receive(), strict=True):
                    results[i] = result
        except BaseException:
            self.close()  # a worker may hold an answer that nobody will fetch
            raise
        return results

    def _stream(self, calls: list[Call]) -> Iterator:
        """Runs calls one by one on whichever worker is free; results in the calls' order."""
        if self._local is not None:
            yield from (self._run([call])[0] for call in calls)
            return
        free: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            free.put(worker)

        def ask(call: Call):
            worker = free.get()
            try:
                worker.send([call])
                return worker.receive()[0]
            finally:
                free.put(worker)

        self._streaming = True
        try:
            with ThreadPoolExecutor(len(self._workers)) as pool:
                yield from pool.map(ask, calls)
        except GeneratorExit:
            raise  # the caller has seen enough; the pool has fetched what was under way
        except BaseException:
            self.close()
            raise
        finally:
            self._streaming = False


class _Host:
    """Environments and slots of one process."""

    def __init__(self, config: EnvConfig):
        self.config = config
        self._envs: dict[int, Simulator] = {}
        self._states: dict[int, object] = {}
        self._begun: set[int] = set()
        self._active: int | None = None

    def run(self, calls: list[Call]) -> list:
        return [self._run(*call) for call in calls]

    def _run(self, slot: int, method: str, arguments: tuple) -> Any:
        if method == "horizon":
            return self._env(slot).horizon
        if method == "expert":
            scene, seed, frame_every = arguments
            env = self._at(slot, fresh=True)
            return self._begin(env, scene), env.play_expert(env.horizon, np.random.default_rng(seed), frame_every)
        env = self._at(slot, fresh=method in ("reset", "restore"))
        return self._begin(env, *arguments) if method == "reset" else getattr(env, method)(*arguments)

    def _begin(self, env: Simulator, *arguments) -> dict:
        """The first frame, which must be what the contract says: told before an episode is played, not after all."""
        return require_frame(env.reset(*arguments), contract_of(self.config), type(env).__name__)

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    def _env(self, slot: int) -> Simulator:
        for env in self._envs.values():
            if env.restores_any_scene:
                return env
        if slot not in self._envs:
            self._envs[slot] = make_env(self.config)
        return self._envs[slot]

    def _at(self, slot: int, fresh: bool = False) -> Simulator:
        """The environment, standing where the slot stands; `fresh`: about to be reset or restored."""
        env = self._env(slot)
        if not fresh and slot not in self._begun:
            raise ValueError(f"slot {slot} has no scene: reset it first")
        self._begun.add(slot)
        if env.restores_any_scene and slot != self._active:
            if self._active is not None:
                self._states[self._active] = env.save()
            state = self._states.pop(slot, None)
            if not fresh:
                env.restore(state)
            self._active = slot
        return env


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, config: EnvConfig, number: int):
        ours, theirs = socket.socketpair()
        # As here, so that a simulator outside the package is found there too; an empty entry is the working directory.
        path = os.pathsep.join([PACKAGE_ROOT, *(entry or os.getcwd() for entry in sys.path)])
        # One thread each, and no accelerator: the simulator uses neither.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
        self._number = number
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deas_vla.envs.vector", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        # By itself: who reads it imports the simulator, and with it the class of its settings.
        self.send(config.simulator)
        self.send(config)

    def send(self, message) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died() from None

    def receive(self) -> list:
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if kind == "user error":
            raise UserError(value)
        if kind == "error":
            raise RuntimeError(f"simulator worker {self._number} failed:\n{value}")
        return value

    def close(self) -> None:
        self.connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _died(self) -> RuntimeError:
        code = self._process.wait()
        return RuntimeError(f"simulator worker {self._number} died (exit status {code}); was memory short?")


def serve(connection: Connection) -> None:
    """Answers calls until the other end is closed."""
    SIMULATORS.get(connection.recv())
    host = _Host(connection.recv())
    try:
        while True:
            calls = connection.recv()
            try:
                answer = ("result", host.run(calls))
            except UserError as error:
                answer = ("user error", str(error))
            except Exception:
                answer = ("error", traceback.format_exc())
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        host.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    from deas_vla.envs import vector  # the classes that messages name live there, not in __main__

    vector.serve(Connection(int(sys.argv[1])))
