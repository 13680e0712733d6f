"""Model cards: Markdown that tells a user of exported weights how they were made and how to load them."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

FACTS = {  # card key -> label in the model card
    "method": "method",
    "dataset": "data set",
    "images": "training images",
    "stem": "stem",
    "patch_size": "side of a patch in pixels",
    "drop_path": "drop path",
    "pool": "pooling of the tokens",
    "large_size": "side of a training view in pixels",
    "epochs": "epochs",
    "steps": "steps",
    "seconds": "seconds of training",
    "seed": "seed",
    "commit": "commit",
}
SCORE = "score: "  # prefix of a card key that holds a score


def model_card(card: Mapping[str, str]) -> str:
    """Format a model card as Markdown; empty values, None and unknown are left out.

    card: "backbone", the keys of FACTS, "score: <key>" for every score, "command", and "mean", "std" and "size" of the
    inputs; `export_backbone` adds "load", the Python code that reads the file, and "note", a remark on it.
    """
    known = {k: v.strip() for k, v in card.items() if v.strip() not in ("", "None", "unknown")}
    facts = [f"- {label}: {known[key]}" for key, label in FACTS.items() if key in known]
    scores = [f"- {key.removeprefix(SCORE)}: {v}" for key, v in known.items() if key.startswith(SCORE)]
    made = "pretrained" if "method" in known else "exported"  # only a run of Lookalike knows its method
    sections = {
        f"# {known.get('backbone', 'backbone')}": f"An image backbone without a classifier, {made} with Lookalike.",
        "## Training": "\n".join(facts),
        "## Results": "\n".join(scores),
        "## Inputs": _inputs(known),
        "## Load": "\n\n".join(filter(None, [_fenced("python", known.get("load")), known.get("note")])),
        "## Command": _fenced("bash", known.get("command")),
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def scores_of(scores: Mapping[str, float], label: str = "") -> dict[str, str]:
    """Format scores as entries of a card, under their keys and a label such as "online"."""
    suffix = f" ({label})" if label else ""
    return {f"{SCORE}{key}{suffix}": f"{value:.4g}" for key, value in scores.items()}


def portable_command(argv: Sequence[str]) -> str:
    """Quote arguments for a shell, with the last component in place of every absolute path of this machine."""
    return " ".join(shlex.quote(_portable(word)) for word in argv)


def _portable(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = PurePath(value)
    if path.is_absolute() or value.startswith("~"):
        return f"{flag}{equals}{path.name.lstrip('~') or 'PATH'}"
    return word


def _inputs(card: Mapping[str, str]) -> str:
    """Describe the images that the network expects."""
    side = card.get("size")
    text = f"RGB images, float32 (N, 3, {side}, {side}), in [0, 1]" if side else "RGB images, float32 in [0, 1]"
    if "mean" in card and "std" in card:
        text += f", then normalized per channel: minus mean {card['mean']}, divided by std {card['std']}"
    return text + "."


def _fenced(language: str, code: str | None) -> str:
    return f"```{language}\n{code}\n```" if code else ""
