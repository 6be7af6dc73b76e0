"""A training that tests kill: this process has torch loaded, and forks a child for each line of JSON on its stdin.

It answers with the child's process id, and at the next line, whatever it says, with what `waitpid` says of the child. A child
trains a tiny GPT-2 with dropout and gradient accumulation, by `train_resumably`, and writes what came out: checksums, history.
With the JSON as its argument it is such a child itself, one of several ranks if a launcher has started it.
"""

import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import torch
from tiny_training import build, outcome
from transformers import TrainerCallback

from exoalign.errors import ExoalignError
from exoalign.train.checkpoints import train_resumably


class Fault(TrainerCallback):
    """What happens to a child in a step: `limit` bytes a file at most from then on, or a signal between two of its passes."""

    def __init__(self, step: int, limit: int | None = None, number: int | None = None, times: int = 1) -> None:
        self.step, self.limit, self.number, self.times = step, limit, number, times

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            if self.limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
            for _ in range(self.times if self.number is not None else 0):
                os.kill(os.getpid(), self.number)


def die_in_save(name: str, step: int) -> None:
    """SIGKILL when half of a checkpoint's file is written."""
    save = torch.save

    def half(what, path, *args, **kwargs):
        save(what, path, *args, **kwargs)
        if Path(path).name == name and Path(path).parent.name == f"checkpoint-{step}":
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def work(folder: str, fault: dict | None = None, die: tuple | None = None, minutes: float = 1e-9, **settings) -> None:
    if die:
        die_in_save(*die)
    trainer = build(Path(folder) / "out", **settings)
    rank = trainer.args.process_index
    if fault and fault.pop("rank", 0) == rank:
        trainer.add_callback(Fault(**fault))
    train_resumably(trainer, folder, made_from=settings, minutes=minutes)
    found = outcome(trainer, Path(folder))
    if rank == 0:
        (Path(folder) / "outcome.json").write_text(json.dumps(found))


def child(request: dict) -> int:
    try:
        with open(Path(request["folder"]) / "log.txt", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        work(**request)
    except ExoalignError as error:
        os.write(2, f"error: {error}\n".encode())
        return error.exit_code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 1
    return 0


def main() -> None:
    if len(sys.argv) > 1:
        # no tidying up: torch's gloo thread may want the interpreter's lock to drop its last tensor, while the main thread
        # holds it and waits for that thread in the destructor of the process group (seen with torch 2.13)
        os._exit(child(json.loads(sys.argv[1])))
    for line in sys.stdin:
        Path(json.loads(line)["folder"]).mkdir(exist_ok=True)
        pid = os.fork()
        if pid == 0:
            os._exit(child(json.loads(line)))
        print(pid, flush=True)
        sys.stdin.readline()  # until then it can be killed without harm to another process of that number
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
