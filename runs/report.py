"""The report of a run: one HTML page that needs no network, made of the files of a run folder alone.

A file that is missing, as in the folder of an earlier version, leaves out its part of the page.
"""

import base64
import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pytorch_lightning import Callback, LightningModule, Trainer

from backbones.export import loading_code
from backbones.load import backbone_metadata
from runs.curves import accuracy_rank, capitalized, metric_title, panels
from runs.folder import write_summary
from runs.loggers import log_results
from utils.distributed import launched_rank, rank_zero_print, reason_of
from utils.errors import UserError
from utils.files import last_value, read_json, read_metrics, write_text_atomically
from utils.ledger import Images
from utils.names import escaped
from utils.plan import DashboardConfig, Plan, is_evaluated
from utils.scores import Rows, slug

REPORT = "report.html"
PICTURES_BYTES = 8_000_000  # of pictures and their data in a page; what comes after is named and left out
MOST_ALARMS, LONGEST_TEXT, LONGEST_COMMAND = 50, 300, 4000
TEMPLATES = Path(__file__).parent / "report_page"
PICTURES = {"neighbours": "Nearest neighbours", "embedding": "Embedding", "views": "Training views",
            "attention": "Attention", "clusters": "Clusters", "confusion": "Confusion matrix"}  # fmt: skip
IMAGE = re.compile(r"data:image/webp;base64,[A-Za-z0-9+/]+=*")
Changed = Mapping[str, tuple[Any, Any]]  # flag -> (value, default)


def write_report(folder: Path, program: str, changed: Changed) -> None:
    """Write report.html, whole or not at all.

    program: what stands before the arguments of the recorded command. changed: flags that are not at their defaults.
    """
    write_text_atomically(folder / REPORT, report_page(folder, program, changed))


def attempt_report(folder: Path, program: str, changed: Changed) -> None:
    """Write the report; a failure is one line and not the end of the command."""
    try:
        write_report(folder, program, changed)
    except Exception as e:
        rank_zero_print(f"  warning: {REPORT} was not written: {reason_of(e)}")


class RunReport(Callback):
    """Write the report of a pretraining after each evaluation, where an error ends it, and at its end.

    A page takes a fraction of a second, between two epochs. Only the first rank writes.
    """

    def __init__(self, folder: Path, program: str, changed: Changed, plan: Plan):
        self.folder, self.program, self.changed = folder, program, changed
        self.every, self.total_epochs = plan.logging.knn_every, plan.schedule.total_epochs
        self.to_resume = f"{program} --resume {shlex.quote(str(folder))}"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The row of the epoch before is in metrics.csv now."""
        done = trainer.current_epoch
        if done and trainer.is_global_zero and is_evaluated(done, self.every, self.total_epochs):
            self.write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and (self.folder / "metrics.csv").exists():
            self.write()

    def write(self) -> None:
        """Write the page as the folder is now."""
        attempt_report(self.folder, self.program, self.changed)

    def finish(self, plan: Plan, seconds: float, ledger: str | None, splits: Mapping[str, Images]) -> None:
        """Write what write_summary writes, and the last page, and say where the run is."""
        write_summary(self.folder, plan, seconds, ledger, splits)
        if launched_rank() == 0:
            self.write()
        rank_zero_print(f"done: {self.folder}")


def publish_results(
    dashboard: DashboardConfig,
    settings: Mapping[str, Any],
    folder: Path,
    rows: Rows,
    program: str,
    changed: Changed,
) -> None:
    """Log an evaluation, as log_results does, and write its report."""
    log_results(dashboard, settings, folder, rows)
    attempt_report(folder, program, changed)


def report_page(folder: Path, program: str, changed: Changed) -> str:
    """The whole page as HTML. Everything that a file holds is escaped."""
    args, problems = _read(folder / "args.json"), []
    try:
        rows = read_metrics(folder / "metrics.csv")
    except UserError as e:
        rows = []
        problems.append(str(e))
    summary, death = _read(folder / "summary.json"), _read(folder / "post_mortem.json")
    networks = {slug(title): title for title, row in summary.items() if isinstance(row, dict)}
    pictures, left_out = _pictures(folder, bool(rows), networks)
    alarms = _read(folder / "alarms.json").get("alarms", [])
    curves = panels(rows) if "plan" in args or not summary else []
    context = {
        "title": escaped(folder.resolve().name),
        "about": _about(args),
        "state": _state(args, rows, summary, death),
        "tiles": _tiles(rows, summary) if curves else [],
        "table": _table(folder, summary) if not curves else [],
        "curves": curves,
        "pictures": pictures,
        "left_out": left_out,
        "alarms": alarms[-MOST_ALARMS:],
        "death": death,
        "settings": {flag: tuple(map(_text, values)) for flag, values in changed.items()},
        "all_settings": {f"--{k}": _text(v) for k, v in args.get("flags", {}).items()},
        "command": " ".join([program, shlex.join(map(str, args["argv"]))])[:LONGEST_COMMAND] if "argv" in args else "",
        "system": _system(args),
        "load": _loading(folder, args),
        "problems": problems,
        "capitalized": capitalized,
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }
    data = {"curves": curves, "points": {p["id"]: p["data"] for p in pictures if p["kind"] == "points"}}
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    # No name can end the script element: "<" is never written there.
    return environment.get_template("page.html").render(context, data=text.replace("<", "\\u003c"))


def _read(path: Path) -> dict[str, Any]:
    """A JSON file, empty where it is missing or damaged: the page shows the rest."""
    try:
        return read_json(path)
    except UserError:
        return {}


def _about(args: Mapping[str, Any]) -> list[str]:
    """Phrases on a run for the head of its report: data set, backbone, method, length, classes."""
    flags = args.get("flags", {})
    if "plan" not in args:
        return ["evaluation", *(_text(flags[k]) for k in ("dataset", "backbone") if k in flags)]
    plan, images = args["plan"], args["plan"]["training_set"]
    classes = f", {images['num_classes']} classes" if images["num_classes"] else ", no labels"
    length = f"{-(-plan['schedule']['total_steps'] // plan['schedule']['steps_per_epoch'])} epochs"
    return [plan["method"], plan["backbone"]["name"], f"{images['name']}: {images['images']:,} images{classes}", length,
            f"seed {plan['seed']}"]  # fmt: skip


def _state(
    args: Mapping[str, Any], rows: Sequence[Mapping[str, str]], summary: Mapping[str, Any], death: Mapping[str, Any]
) -> tuple[str, str]:
    """("done", "now" or "bad"; the state in words)."""
    if "plan" not in args:
        return ("done", "finished") if summary else ("now", "unknown")
    done = 1 + max((int(row["step"]) for row in rows), default=-1)
    total = int(args["plan"]["schedule"]["total_steps"])
    if summary and done >= total:
        return "done", "finished"
    if death and int(death.get("noticed_at_step", 0)) >= done - 1:
        return "bad", f"ended at step {death.get('step')} of {total:,}: not finite"
    return "now", f"step {done:,} of {total:,}"


def _tiles(rows: list[dict[str, str]], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of the numbers that tell how the run went."""
    columns = list(rows[0]) if rows else []
    percent = [c for c in columns if re.fullmatch(r"knn_\d+|val_probe_acc|probe_acc", c)]
    values = {c: last_value(rows, c) for c in sorted(percent, key=accuracy_rank)}
    tiles = [(metric_title(c), f"{v:.1f} %") for c, v in values.items() if v is not None]
    for name, text in (("loss", "{:.3f}"), ("images_per_second", "{:,.0f}")):
        if (number := last_value(rows, name)) is not None:
            tiles.append((metric_title(name), text.format(number)))
    if "seconds" in summary:
        tiles.append(("duration", _duration(summary["seconds"])))
    return tiles


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _table(folder: Path, summary: Mapping[str, Any]) -> list[list[str]]:
    """The table of scores: as it was printed, else the numbers of summary.json under their keys."""
    if lines := _read(folder / "table.json").get("lines", []):
        return lines if len(lines[0]) > 1 else []
    rows = {title: row["scores"] for title, row in summary.items() if isinstance(row, dict) and row.get("scores")}
    keys = list(dict.fromkeys(key for scores in rows.values() for key in scores))
    cells = [[title, *(f"{s[k]:.4g}" if k in s else "-" for k in keys)] for title, s in rows.items()]
    return [["", *keys], *cells] if cells else []


def _pictures(folder: Path, has_curves: bool, networks: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The pictures of the page in their order, and the names of those that it has no room for.

    networks: beginning of file names -> title of the network, in the order of the table. Of a picture whose data are a
    JSON file beside it, the data are shown.
    """
    shown: list[dict[str, Any]] = []
    left_out, room = [], PICTURES_BYTES
    for path in sorted(_picture_files(folder, has_curves), key=lambda p: _order(p, list(networks))):
        if (size := path.stat().st_size * (4 if path.suffix == ".png" else 3) // 3) > room:
            left_out.append(escaped(path.name))
            continue
        if picture := _picture(path):
            room -= size
            shown.append({"id": f"picture-{len(shown) + 1}", "title": _picture_title(path, networks), **picture})
    return shown, left_out


def _picture_files(folder: Path, has_curves: bool) -> Iterator[Path]:
    for path in folder.iterdir():
        with_data = path.suffix == ".json" and path.stem.rpartition("_")[2] in PICTURES
        drawn = has_curves if path.stem == "curves" else path.with_suffix(".json").exists()
        if with_data or (path.suffix == ".png" and not drawn):
            yield path


def _order(path: Path, networks: list[str]) -> tuple[int, str, int, str]:
    """By network, then as in PICTURES."""
    network, _, kind = path.stem.rpartition("_")
    place = networks.index(network) if network in networks else len(networks)
    return place, network, list(PICTURES).index(kind) if kind in PICTURES else len(PICTURES), path.name


def _picture_title(path: Path, networks: Mapping[str, str]) -> str:
    network, _, kind = path.stem.rpartition("_")
    title = PICTURES.get(kind, kind)
    return escaped(f"{title}: {networks.get(network, network)}" if network else title)


def _picture(path: Path) -> dict[str, Any] | None:
    """A grid, points or an image; None for a file that is none of them."""
    if path.suffix == ".png":
        text = base64.b64encode(path.read_bytes()).decode()
        return {"kind": "image", "source": f"data:image/png;base64,{text}", "file": escaped(path.name)}
    data = _read(path)
    if data.get("kind") not in ("grid", "points") or not IMAGE.fullmatch(str(data.get("sheet"))):
        return None
    picture = {"kind": data.pop("kind"), "sheet": data.pop("sheet")}
    return picture | {name: int(data.pop(name)) for name in ("side", "columns", "lines")} | {"data": data}


def _text(value: Any) -> str:
    """A setting in words, at most LONGEST_TEXT characters of it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        text = " ".join(map(_text, value))
    else:
        text = f"{value:.6g}" if isinstance(value, float) else escaped(str(value))
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."


def _system(args: Mapping[str, Any]) -> dict[str, str]:
    """Versions and machine."""
    names = {"lookalike": "Lookalike", "commit": "commit", "machine": "machine", "threads": "threads",
             "python": "Python"}  # fmt: skip
    facts = {title: str(args[name]) for name, title in names.items() if name in args}
    if "plan" in args:
        hardware = args["plan"]["hardware"]
        facts["hardware"] = f"{hardware['processes']} x {hardware['accelerator']}, precision {hardware['precision']}"
    return facts | {name: str(number) for name, number in args.get("packages", {}).items()}


def _loading(folder: Path, args: Mapping[str, Any]) -> str:
    """Python code that loads backbone.safetensors; nothing for an evaluation."""
    if "plan" not in args or not (folder / "backbone.safetensors").exists():
        return ""
    facts = backbone_metadata(args["plan"])
    output = Path(str(args.get("flags", {}).get("output", "")))
    file = (Path() if output.is_absolute() else output) / folder.resolve().name / "backbone.safetensors"
    names = ("backbone", "stem", "patch_size", "pool")
    return loading_code(str(file), *(facts[name] for name in names), int(facts["large_size"]))
