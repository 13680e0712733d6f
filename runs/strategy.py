"""DDP whose processes fail together."""

import os
from typing import Any

from pytorch_lightning.strategies import DDPStrategy

from utils.errors import announce
from utils.peers import FIRST_PROCESS, signals_end_at_once, watch_children, watch_peers


class FailingTogetherDDP(DDPStrategy):
    """DDP that watches its processes, before they have found each other and after that.

    Lightning's own launcher starts the other processes of this machine itself; under torchrun and srun it starts none.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        os.environ.setdefault(FIRST_PROCESS, str(os.getpid()))

    def setup_environment(self) -> None:
        with watch_children(getattr(self.launcher, "procs", [])), signals_end_at_once():
            super().setup_environment()
        watch_peers()

    def on_exception(self, exception: BaseException) -> None:
        """Tell the other processes before Lightning cleans up, which may take long."""
        super().on_exception(exception)
        if isinstance(exception, Exception):  # a signal comes to all
            announce(exception)
