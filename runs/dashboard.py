"""Weights & Biases as a logger that can neither stop a run nor keep it waiting."""

import contextlib
import os
import re
import shlex
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pytorch_lightning.loggers import Logger

from runs.metric_groups import best_and_last, grouped
from runs.tensorboard import columns_and_cells
from utils.distributed import rank_zero_print
from utils.errors import UserError
from utils.files import read_metrics
from utils.plan import DashboardConfig
from utils.scores import Rows

CONNECT = 3.0  # seconds to wait for the server before training
BACKBONE = "backbone.safetensors"
UNFIT_FOR_ARTIFACT = re.compile(r"[^A-Za-z0-9_.\-]")
INIT, FINISH = 20.0, 120.0  # seconds that the client may take to open a page, and to upload the rest at the end


class Dashboard(Logger):
    """A run's page on Weights & Biases; without a network or a login, files for `wandb sync`.

    An error of the client is said once, and the dashboard is off from then on. Only for the first rank.
    """

    def __init__(self, config: DashboardConfig, settings: Mapping[str, Any], folder: Path, resumed: bool):
        super().__init__()
        try:
            import wandb  # noqa: F401
        except ModuleNotFoundError as e:
            raise UserError(f"--wandb needs Weights & Biases ({e}): pip install -r requirements.txt") from e
        self.config, self.settings, self.folder, self.resumed = config, settings, folder, resumed
        self._page: Any = None
        obstacle = None if config.offline else _attempt(why_offline)
        if not config.offline and obstacle is None:
            obstacle = _attempt(lambda: self._open(offline=False))
            if self._page is None:
                _in_time(_close_client, CONNECT)  # it would refuse to open the same page again
        if self._page is None:
            if obstacle:
                upload = f"upload it later: wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*"
                rank_zero_print(f"  note: Weights & Biases: {obstacle}; the run is logged offline, {upload}")
            self._say_off(_attempt(lambda: self._open(offline=True)))

    def _open(self, offline: bool) -> None:
        import wandb

        in_sweep = bool(os.environ.get("WANDB_SWEEP_ID"))  # its project and its entity are those of the sweep
        page = wandb.init(
            name=self.config.name,
            project=None if in_sweep else self.config.project,
            entity=None if in_sweep else self.config.entity,
            id=self.folder.name,
            dir=str(self.folder),
            config=dict(self.settings),
            resume="allow" if self.resumed and not offline else None,
            settings=wandb.Settings(init_timeout=INIT, login_timeout=INIT, finish_timeout=FINISH),
            mode="offline" if offline else None,
        )
        # The client counts the libraries that a run imports; without its process, their import would fail.
        wandb.sdk.lib.import_hooks.unregister_all_post_import_hooks()
        self._page = page

    def _do(self, action: Callable[[Any], None]) -> None:
        if self._page is not None:
            page = self._page
            self._say_off(_attempt(lambda: action(page)))

    def _say_off(self, obstacle: str | None) -> None:
        if obstacle:
            self._page = None
            rank_zero_print(f"  note: Weights & Biases is off from here: {obstacle}; metrics.csv has all numbers")
            _in_time(_close_client, CONNECT)

    @property
    def name(self) -> str:
        return self.config.project

    @property
    def version(self) -> str:
        return self.folder.name

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the page has the settings from the start."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of an optimizer step, in their groups: a resumed run goes on where the page ends."""
        named = {grouped(name): value for name, value in metrics.items()}
        self._do(lambda page: page.log(named, step=step))

    def log_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Show pictures under their file names."""
        for picture in pictures:
            self._do(partial(_log_picture, picture=picture, step=step))

    def log_table(self, rows: Rows) -> None:
        """Show the scores of an evaluation, a row per network."""
        self._do(partial(_log_table, rows=rows))

    def finalize(self, status: str) -> None:
        """Give the page the best and the last values, and after training the backbone."""
        self._do(lambda page: page.summary.update(best_and_last(read_metrics(self.folder / "metrics.csv"))))
        backbone = self.folder / BACKBONE
        if status == "success" and backbone.exists():
            self._do(partial(_log_backbone, path=backbone, name=f"backbone-{self.folder.name}"))


def _log_picture(page: Any, picture: Path, step: int) -> None:
    import wandb

    page.log({picture.stem: wandb.Image(str(picture))}, step=step)


def _log_table(page: Any, rows: Rows) -> None:
    import wandb

    columns, cells = columns_and_cells(rows)
    page.log({"evaluation": wandb.Table(columns=[*columns], data=cells)}, step=0)


def _log_backbone(page: Any, path: Path, name: str) -> None:
    import wandb

    artifact = wandb.Artifact(UNFIT_FOR_ARTIFACT.sub("_", name), type="model")
    artifact.add_file(str(path), policy="immutable")  # not copied: it stays in the run folder
    page.log_artifact(artifact)


def why_offline() -> str | None:
    """What stands between this machine and Weights & Biases, found within seconds; None where nothing does."""
    base_url, login = _settings()
    if base_url is None:
        return None
    if not login:
        return "no login (set WANDB_API_KEY or call wandb login)"
    url = urlsplit(base_url)
    proxy = getproxies().get(url.scheme)
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    obstacle = _connect(url.hostname or "", port)
    return f"no network ({url.hostname}:{port}: {obstacle})" if obstacle else None


def _settings() -> tuple[str | None, bool]:
    """(address of the server, or None where WANDB_MODE asks for none; whether there is a login)."""
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    settings = wandb.setup().settings
    if settings.mode not in ("online", "shared", "run"):
        return None, False
    login = settings.api_key or settings.identity_token_file or read_netrc_auth(host=settings.base_url)
    return settings.base_url, bool(login)


def _connect(host: str, port: int) -> str | None:
    """What prevents a connection. In a thread, because looking a name up may take long and knows no limit."""
    obstacles: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), CONNECT).close()
            obstacles.append(None)
        except OSError as e:
            obstacles.append(e.strerror or str(e))

    _in_time(connect, 2 * CONNECT)
    return obstacles[0] if obstacles else "no answer"


def _in_time(action: Callable[[], None], seconds: float) -> None:
    """Start an action and go on when it ends, or without it when the time is over."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


def _close_client() -> None:
    """End the client now; its own end, when Python exits, would show a traceback."""
    with contextlib.suppress(Exception):
        import wandb

        wandb.teardown()


def _attempt(action: Callable[[], str | None]) -> str | None:
    """What `action` returns; of an exception one line, without the key."""
    try:
        return action()
    except Exception as e:
        line = next(iter(str(e).strip().splitlines()), "") or type(e).__name__
        key = os.environ.get("WANDB_API_KEY")
        return line.replace(key, "***") if key else line
