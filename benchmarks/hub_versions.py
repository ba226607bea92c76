"""Every version to the Hub and back: `python benchmarks/hub_versions.py [--python OTHER]` prints a table of hub.md.

Each recipe is trained for a few steps at a tiny size on Bach, pushed by `pianogen push` to the Hub that the tests have
(tests/hub_server.py), and deleted here. Then it is loaded by name, with an empty cache each time: in a process with the
package, and, by `trust_remote_code=True`, in one without it. Both must answer the same: the last logits, what they
generate from one seed, the MIDI file of it read back.

`--python` names the interpreter of an environment that has torch, transformers, symusic and miditok, and not this
package; by default this one's, in which the package is hidden.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

# Hub name, recipe, sizes in the words of its configuration.
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 64}
VERSIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("v1", "v1", _SIZES),
    ("v1-masked", "v1", {**_SIZES, "is_causal": False}),
    ("v2", "v2", _SIZES),
    ("v2-masked", "v2", {**_SIZES, "is_causal": False}),
    ("v3", "v3", _GPT2),
    ("v4", "v4", _GPT2),
    ("v5", "v5", _SIZES),
    ("v6", "v6", _GPT2),
    ("v7", "v7", _SIZES),
    ("v7-remi", "v7-remi", _SIZES),
    ("llama", "llama", _SIZES),
]
_COMPARED = ("logits", "written", "read back")  # what `answers` tells
_TRAIN = "from pianogen_hf.commands.train import main; import sys; sys.exit(main(sys.argv[1:]))"
_PUSH = "from pianogen_hf.commands import main; import sys; sys.exit(main(['push', *sys.argv[1:]]))"


def train(recipe: str, sizes: dict[str, Any], output: Path, cache: Path, environment: dict[str, str]) -> None:
    """A few steps of a recipe at a tiny size; stages are trained in turn."""
    options = {
        "model_config": json.dumps(sizes),
        "source": "bach",
        "max_pieces": 4,
        "chunk_length": 512,  # CrayKH text of the prompt is long
        "max_steps": 3,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": "false",
        "per_device_train_batch_size": 2,
        "augmentation": "lazy",
        "report_to": "none",
        "card_text": ROOT / "model_cards" / f"{recipe}.md",
        "cache_dir": cache,
        "output_dir": output,
    }
    command = [sys.executable, "-c", _TRAIN, str(ROOT / "configs" / f"{recipe}.yaml")]
    run([*command, *(f"--{name}={value}" for name, value in options.items())], environment)


def run(command: list[str], environment: dict[str, str]) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ...: {done.stderr[-2000:]}")
    return done.stdout


def there_and_back(hub: Any, name: str, recipe: str, sizes: dict[str, Any], place: Path, python: str) -> str:
    """One row of the table."""
    repo, folder = f"pianogen/{name}", place / name
    environment = hub.environment(place / f"{name}-push", PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="0")
    train(recipe, sizes, folder, place / "cache", environment)
    said = run([sys.executable, "-c", _PUSH, "--model", str(folder), "--repo", repo], environment)
    shutil.rmtree(folder)
    told = {}
    for how, interpreter in (("with", sys.executable), ("without", python)):
        environment = hub.environment(place / f"{name}-{how}", token=None, HF_HUB_OFFLINE="0")
        environment |= {"PYTHONPATH": str(ROOT) if how == "with" else ""}
        asked = [interpreter, __file__, "--answer", repo, "--prompt", str(place / "prompt.mid"), "--how", how]
        told[how] = json.loads(run(asked, environment).splitlines()[-1])
    files = hub.files(repo)
    cells = ["equal" if "computes the same" in said else "DIFFER"]
    cells += ["equal" if told["with"][key] == told["without"][key] else "DIFFER" for key in _COMPARED]
    model, _, _, reader = told["without"]["classes"]
    return f"| `{repo}` | {model}, {reader} | {len(files)} | {' | '.join(cells)} |"


def answer(repo: str, prompt: str, how: str) -> None:
    """In a process of its own: what a model answers that is loaded by name."""
    from without_package import Absent, answers, hide_package

    if how == "with":
        importlib.import_module("pianogen_hf")
        told = answers(repo, prompt)
    else:
        Absent.names.discard("miditok")  # which a REMI tokenizer needs everywhere
        hide_package()
        told = answers(repo, prompt, trust_remote_code=True)
    print(json.dumps(told))


def write_prompt(path: Path) -> None:
    """Music to go on from."""
    from models_and_tokenizers import some_notes

    import pianogen_hf

    pianogen_hf.write_midi(some_notes(), path)


def main() -> None:
    """Print the table, or answer as one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of an environment without this package")
    parser.add_argument("--only", nargs="+", help="names of versions")
    for name in ("--answer", "--prompt", "--how"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        return answer(args.answer, args.prompt, args.how)
    from hub_server import HubServer

    print(f"| name | classes without the package | files | reloaded after the push | {' | '.join(_COMPARED)} |")
    print("|---|---|---|---|---|---|---|")
    with HubServer() as hub, tempfile.TemporaryDirectory() as scratch:
        write_prompt(Path(scratch, "prompt.mid"))
        for name, recipe, sizes in VERSIONS:
            if not args.only or name in args.only:
                print(there_and_back(hub, name, recipe, sizes, Path(scratch), args.python), flush=True)
    return None


if __name__ == "__main__":
    main()
