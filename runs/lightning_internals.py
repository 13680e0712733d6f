"""Private parts of Lightning that this application relies on, each with the reason; tested for every version.

Nothing else in the project touches a name of Lightning that begins with an underscore or the layout of its checkpoints.
"""

from typing import Any

from pytorch_lightning import Trainer


def write_step_metrics(trainer: Trainer) -> None:
    """Write what the current step logged, now.

    Lightning writes it after all `on_train_batch_end` hooks, but an interrupted run saves and leaves inside one.
    There is no public way to flush.
    """
    trainer._logger_connector.update_train_step_metrics()


def mark_epoch_completed(checkpoint: dict[str, Any]) -> None:
    """Make a checkpoint that was saved in `on_train_epoch_end` resume with the next epoch.

    Lightning counts an epoch as completed only after that hook, so its own counters would repeat the epoch's end. A
    restart also adds one to the number of logged steps, as it must after a stop within an epoch; here that is too many.
    Where the last step of the run cut the epoch short, an extended run goes on within it, as after a stop there.
    """
    loops = checkpoint["loops"]["fit_loop"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    if not loops["epoch_loop.batch_progress"]["is_last_batch"]:
        for progress, count in (("epoch_progress", "processed"), ("epoch_loop.batch_progress", "completed")):
            for counts in (loops[progress]["current"], loops[progress]["total"]):
                counts[count] -= 1
        _reset(loops["epoch_loop.val_loop.batch_progress"])
        return
    for counts in (loops["epoch_progress"]["current"], loops["epoch_progress"]["total"]):
        counts["completed"] = counts["processed"]
    for name in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        _reset(loops[name])


def _reset(progress: dict[str, Any]) -> None:
    progress["current"] = dict.fromkeys(progress["current"], 0)
    progress["is_last_batch"] = False
